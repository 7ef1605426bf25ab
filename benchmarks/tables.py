"""Prints the tables of the benchmarks on standard output, and progress on standard error."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence

Cell = float | str | None
# A row's title and its cells.
Row = tuple[str, Sequence[Cell]]


def progress(text: str) -> None:
    """Prints one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """Describes this machine: its cores and its memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB"


def print_rates(title: str, rates: Mapping[str, float], *, unit: str) -> None:
    """Prints rates per second, and each as a multiple of the last one."""
    base = list(rates.values())[-1]
    print(f"{title} ({machine()})")
    for name, rate in rates.items():
        print(f"  {name:44} {rate:>10,.0f} {unit}/s {rate / base:>8.2f} x")


def print_columns(title: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Prints a table. Numbers show about three digits; None shows as a dash."""
    print(f"\n{title}")
    print(f"  {'':52}" + "".join(f"{column:>10}" for column in columns))
    for name, values in rows:
        print(f"  {name:52}" + "".join(f"{_cell_text(value):>10}" for value in values))


def _cell_text(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value < 0.01:
        return f"{value:.0e}" if value else "0"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
