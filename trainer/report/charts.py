"""Line charts as SVG elements of a page. Histograms are drawn as lines too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 220  # pixels; a phone shows this width without scaling
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 30, 40
MOST_POINTS = 400
# Lines differ by their dashes too, so that they can be told apart without colour.
DASHES = ("none", "6 3", "2 3")


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """A line of a chart.

    Attributes:
      name: its name in the legend.
      x: floats [n], ascending.
      y: floats [n], finite.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """An <svg> element with at most three lines, and a legend. Lines without points are left out.

    Args:
      lines: the lines. They differ by colour and by dashes.
      x_label: text below the chart.
      y_label: text above the chart.
      y_range: range of the y axis. None: from 0, or the least value if it is negative, to the
        greatest value.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return Markup("<p>no values</p>")
    xs = np.concatenate([np.asarray(line.x) for line in lines])
    ys = np.concatenate([np.asarray(line.y) for line in lines])
    low, high = y_range or (min(0.0, float(ys.min())), float(ys.max()))
    x_ticks, y_ticks = _ticks(float(xs.min()), float(xs.max())), _ticks(low, high)
    left, right = min(float(xs.min()), x_ticks[0]), max(float(xs.max()), x_ticks[-1])
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_text(2, 12, y_label, "start")]
    for tick in y_ticks:
        _, y = at(left, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 5, y + 4, _number(tick), "end"))
    for tick in x_ticks:
        x, _ = at(tick, low)
        parts.append(_text(x, HEIGHT - BOTTOM + 15, _number(tick), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    legend = []
    for place, line in enumerate(lines):
        chosen = np.linspace(0, len(line.x) - 1, min(len(line.x), MOST_POINTS)).round().astype(int)
        points = [at(float(line.x[i]), float(line.y[i])) for i in chosen]
        style = f'class="line{place}" stroke-dasharray="{DASHES[place]}"'
        if len(points) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path {style} d="M{path}"/>')
        else:
            [(x, y)] = points
            parts.append(f'<circle class="dot{place}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        sample = '<svg viewBox="0 0 30 8" width="30" height="8" aria-hidden="true">'
        sample += f'<path {style} d="M0 4H30"/></svg>'
        legend.append(f"<li>{sample} {escape(line.name)}</li>")
    title = f"{y_label} by {x_label}: {', '.join(line.name for line in lines)}"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    chart = f'<svg class="chart" {size} role="img" aria-label="{escape(title)}">{"".join(parts)}'
    return Markup(f'{chart}</svg><ul class="legend">{"".join(legend)}</ul>')


def histogram(name: str, values: np.ndarray, *, stop: float, bins: int) -> Line:
    """The share of values [n], each 0 to `stop`, in each of `bins` equal ranges, as a line."""
    if not len(values):
        return Line(name, [], [])
    counts, edges = np.histogram(values, bins=bins, range=(0, stop))
    shares = np.repeat(counts / len(values), 2)
    return Line(name, np.repeat(edges, 2), np.concatenate([[0.0], shares, [0.0]]))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, in about four steps, that span the range from low to high."""
    if not high > low:
        return [low, low + 1]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    round_steps = (power * factor for factor in (1, 2, 2.5, 5, 10))
    step = next(each for each in round_steps if each >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
