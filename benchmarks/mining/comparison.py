"""Turns in rotation, and what comes of them."""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.mining.contestants import ENTRIES, MATMUL, Entry
from benchmarks.mining.processes import Worker, WorkerError
from benchmarks.timing import print_columns, turns

# Seconds of each call, and the loss.
Turn = tuple[list[float], float]


@dataclasses.dataclass(frozen=True)
class Result:
    """One contestant at one batch size.

    Attributes:
      median: seconds, of the medians of its turns.
      fastest: seconds, of all calls.
      loss: what it computed.
    """

    median: float
    fastest: float
    loss: float


def progress(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def rotate(
    contestants: Mapping[str, Callable[[], Turn]], *, rounds: int, seconds: float
) -> dict[str, Result | None]:
    """The result of each contestant; None of one that failed, which has no further turn.

    Rounds and seconds are those of `turns`.
    """
    failed: set[str] = set()

    def guarded(name: str, run: Callable[[], Turn]) -> Callable[[], Turn | None]:
        def turn() -> Turn | None:
            if name not in failed:
                try:
                    return run()
                except WorkerError as error:
                    progress(f"{name} failed: {error}")
                    failed.add(name)
            return None

        return turn

    guards = {name: guarded(name, run) for name, run in contestants.items()}
    found = turns(guards, rounds=rounds, seconds=seconds)
    return {
        name: None if name in failed else _result([turn for turn in results if turn])
        for name, results in found.items()
    }


def _result(results: Sequence[Turn]) -> Result:
    return Result(
        median=statistics.median(statistics.median(seconds) for seconds, _ in results),
        fastest=min(min(seconds) for seconds, _ in results),
        loss=results[-1][1],
    )


# Entry, its result and how to find that of another at the same batch size -> what a cell shows.
Number = Callable[[Entry, Result, Callable[[str | None], Result | str | None]], float | None]


class Comparison:
    """Every entry at every batch size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        # In place of a result: why there is none.
        self._results: dict[tuple[str, int], Result | str] = {}

    def run(self, workers: Mapping[str, Worker], *, rounds: int, seconds: float) -> None:
        """All entries take turns, one batch size after the other."""
        for rows in self._sizes:
            entries = [entry for entry in ENTRIES if rows <= entry.most]
            contestants = {
                entry.name: functools.partial(workers[entry.environment].turn, entry.name, rows)
                for entry in entries
                if entry.environment in workers
            }
            progress(f"B = {rows}: {len(contestants)} contestants in rotation")
            found = rotate(contestants, rounds=rounds, seconds=seconds)
            for entry in entries:
                missing = "failed" if entry.name in found else "absent"
                self._results[entry.name, rows] = found.get(entry.name) or missing

    def print(self) -> None:
        """The tables: milliseconds, multiples, and how far losses are apart."""
        self._table("Milliseconds, medians", lambda _, found, __: found.median * 1e3)
        self._table("Milliseconds, fastest call", lambda _, found, __: found.fastest * 1e3)
        self._table("Times the matmul, medians", lambda _, found, of: _ratio(found, of(MATMUL)))
        self._table(
            "Times ours of the same kind, medians",
            lambda entry, found, of: _ratio(found, of(entry.rival)),
        )
        self._table(
            "Loss: how far from ours where the definition is the same",
            lambda entry, found, of: _apart(found, of(entry.equals)),
        )

    def _table(self, title: str, number: Number) -> None:
        def cell(entry: Entry, rows: int) -> float | str | None:
            found = self._results.get((entry.name, rows))
            if not isinstance(found, Result):
                return found
            return number(entry, found, lambda name: self._results.get((name or "", rows)))

        lines = [(entry.title, [cell(entry, rows) for rows in self._sizes]) for entry in ENTRIES]
        shown = [line for line in lines if any(value is not None for value in line[1])]
        print_columns(title, [f"B = {rows}" for rows in self._sizes], shown)


def _ratio(found: Result, base: Result | str | None) -> float | None:
    return found.median / base.median if isinstance(base, Result) else None


def _apart(found: Result, other: Result | str | None) -> float | None:
    return abs(found.loss - other.loss) if isinstance(other, Result) else None
