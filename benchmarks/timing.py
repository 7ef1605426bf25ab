"""Medians of runs that take turns, so that what else the machine does hits all alike."""

import os
import statistics
import time
from collections.abc import Callable, Mapping


def rates(contestants: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, float]:
    """Things a second of each contestant; a contestant returns how many things it did."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            done = run()
            if turn:  # the first turn warms up
                seconds[name].append((time.perf_counter() - start) / done)
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, found: Mapping[str, float], *, unit: str) -> None:
    """Rates, and each as a multiple of the last row's."""
    base = list(found.values())[-1]
    print(f"{title} ({os.cpu_count()} cores)")
    for name, rate in found.items():
        print(f"  {name:44} {rate:>10,.0f} {unit}/s {rate / base:>8.2f} x")
