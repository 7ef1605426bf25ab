"""Medians of runs that take turns, so that what else the machine does hits all alike."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def turns(
    contestants: Mapping[str, Callable[[], T]], *, rounds: int, seconds: float = float("inf")
) -> dict[str, list[T]]:
    """What each contestant returns in each of its turns, but for the first, which warms up.

    Past so many seconds, three rounds are enough.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    start = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 3 and time.perf_counter() - start > seconds:
            break
        for name, run in contestants.items():
            result = run()
            if turn:
                found[name].append(result)
    return found


def rates(contestants: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, float]:
    """Things a second of each contestant; a contestant returns how many things it did."""

    def timed(run: Callable[[], int]) -> Callable[[], float]:
        def turn() -> float:
            start = time.perf_counter()
            done = run()
            return (time.perf_counter() - start) / done

        return turn

    found = turns({name: timed(run) for name, run in contestants.items()}, rounds=rounds)
    return {name: 1 / statistics.median(values) for name, values in found.items()}


def machine() -> str:
    """Its cores and its memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB"


def print_table(title: str, found: Mapping[str, float], *, unit: str) -> None:
    """Rates, and each as a multiple of the last row's."""
    base = list(found.values())[-1]
    print(f"{title} ({machine()})")
    for name, rate in found.items():
        print(f"  {name:44} {rate:>10,.0f} {unit}/s {rate / base:>8.2f} x")


def print_columns(
    title: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[float | str | None]]],
) -> None:
    """Rows with their names; numbers to three digits, text as it is, a dash for None."""
    print(f"\n{title}")
    print(f"  {'':52}" + "".join(f"{column:>10}" for column in columns))
    for name, values in rows:
        print(f"  {name:52}" + "".join(f"{_cell(value):>10}" for value in values))


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value < 0.01:
        return f"{value:.0e}" if value else "0"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
