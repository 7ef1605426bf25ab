"""Measures contestants in turns, so that other work on the machine affects all of them alike.

A contestant is one program or function that a benchmark measures. In each round every contestant
has one turn. A peer is another library that solves the same problem; `make peers` installs the
peers into environments of their own.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmarks.processes import CommandError
from benchmarks.tables import progress

T = TypeVar("T")


def turns(
    contestants: Mapping[str, Callable[[], T]], *, rounds: int, seconds: float = float("inf")
) -> dict[str, list[T]]:
    """Runs all contestants in rounds.

    One more round comes first, to warm up; its results are dropped. Once `seconds` have passed, no
    new round starts after the third counted round.

    Returns:
      The results of each contestant, one per counted round.
    """
    results: dict[str, list[T]] = {name: [] for name in contestants}
    start = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 3 and time.perf_counter() - start > seconds:
            break
        for name, run in contestants.items():
            result = run()
            if turn:
                results[name].append(result)
    return results


@dataclasses.dataclass
class Rotation:
    """Runs contestants in rounds and goes on without those that fail.

    Attributes:
      rounds: how many turns each contestant has. There is no round to warm up.
      failures: how many calls have failed so far.
    """

    rounds: int
    failures: int = 0

    def attempt(self, name: str, call: Callable[[], T]) -> T | None:
        """Returns the result of the call. A CommandError is printed and gives None."""
        try:
            return call()
        except CommandError as error:
            progress(f"{name} failed: {error}")
            self.failures += 1
            return None

    def run(self, title: str, contestants: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Runs all contestants in rounds.

        Args:
          title: what is measured, for the progress lines.
          contestants: functions that do not return None.

        Returns:
          The results of each contestant, one per round; an empty list for one that failed.
        """
        results: dict[str, list[T]] = {name: [] for name in contestants}
        failed = set()
        for number in range(self.rounds):
            for name, call in contestants.items():
                if name in failed:
                    continue
                progress(f"{title}: round {number + 1} of {self.rounds}: {name}")
                result = self.attempt(name, call)
                if result is None:
                    failed.add(name)
                    results[name] = []
                else:
                    results[name].append(result)
        return results


def seconds_of(run: Callable[[], object]) -> float:
    """Returns the seconds that one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], *, rounds: int) -> float:
    """Returns the median of the seconds that a call takes, after one call to warm up."""
    return statistics.median(turns({"": lambda: seconds_of(run)}, rounds=rounds)[""])


def rates(contestants: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, float]:
    """Measures how many items each contestant handles per second.

    Args:
      contestants: functions that return how many items they handled.
      rounds: how many counted turns each contestant has.

    Returns:
      The median rate of each contestant, in items per second.
    """

    def timed(run: Callable[[], int]) -> Callable[[], float]:
        def turn() -> float:
            start = time.perf_counter()
            items = run()
            return (time.perf_counter() - start) / items

        return turn

    results = turns({name: timed(run) for name, run in contestants.items()}, rounds=rounds)
    return {name: 1 / statistics.median(seconds) for name, seconds in results.items()}
