"""Charts: points are drawn in the right places, and texts are escaped."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from trainer.report import charts
from trainer.report.charts import Line, histogram

LEFT, RIGHT = charts.LEFT, charts.WIDTH - charts.RIGHT
TOP, BOTTOM = charts.TOP, charts.HEIGHT - charts.BOTTOM


def line_chart(*lines: Line) -> str:
    return charts.line_chart(lines, x_label="x", y_label="y")


def drawn(chart: str, place: int) -> np.ndarray:
    """The points [n, 2] of a line."""
    svg = ElementTree.fromstring(re.match(r"<svg.*?</svg>", chart, re.DOTALL)[0])
    [path] = [each for each in svg.iter("path") if each.get("class") == f"line{place}"]
    numbers = re.findall(r"[\d.]+", path.get("d"))
    return np.array(numbers, float).reshape(-1, 2)


def test_corners_of_the_axes():
    chart = line_chart(Line("a", [0, 50, 100], [0, 0.5, 1]))
    middle = [(LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2]
    assert drawn(chart, 0).tolist() == [[LEFT, BOTTOM], middle, [RIGHT, TOP]]


def test_two_lines_differ_by_dashes():
    chart = line_chart(Line("a", [0, 1], [0, 1]), Line("b", [0, 1], [1, 0]))
    dashes = re.findall(r'class="line[01]" stroke-dasharray="(.*?)" d=', chart)
    assert len({*dashes}) == 2
    np.testing.assert_array_equal(drawn(chart, 0)[:, 0], drawn(chart, 1)[:, 0])


def test_a_single_value_is_a_dot():
    assert "<circle" in line_chart(Line("a", [5], [0.25]))


def test_nothing_to_draw():
    assert "<svg" not in line_chart(Line("a", [], []))


def test_names_are_escaped():
    chart = charts.line_chart([Line("<b>\"'", [0, 1], [0, 1])], x_label="</svg>", y_label="<i>")
    assert "<b>" not in chart
    assert "<i>" not in chart
    assert chart.count("</svg>") == 2  # one for the chart and one for the legend


def test_many_points_keep_the_ends():
    y = np.linspace(0, 1, 10_000)
    points = drawn(line_chart(Line("a", [*range(10_000)], y)), 0)
    assert len(points) <= 400
    assert points[0].tolist() == [LEFT, BOTTOM]
    assert points[-1].tolist() == [RIGHT, TOP]


def test_histogram():
    line = histogram("a", np.array([0.1, 0.2, 1.9, 2.0]), stop=2.0, bins=2)
    assert line.x.tolist() == [0, 0, 1, 1, 2, 2]
    assert line.y.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0]
    assert not len(histogram("a", np.zeros(0), stop=1.0, bins=2).x)


@pytest.mark.parametrize("values", [[1, 1], [0, 0], [-3, 4], [0.001, 0.002]])
def test_lines_stay_within_the_axes(values):
    points = drawn(line_chart(Line("a", [1, 2], values)), 0)
    assert (points >= [LEFT, TOP]).all()
    assert (points <= [RIGHT, BOTTOM]).all()
