"""Runs all losses in rotation and prints the comparison tables."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.mining.contestants import ENTRIES, MATMUL, Entry
from benchmarks.mining.processes import Worker
from benchmarks.processes import CommandError
from benchmarks.tables import print_columns, progress
from benchmarks.timing import turns

# The seconds of each call, and the loss.
Turn = tuple[list[float], float]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contestant needed at one batch size.

    Attributes:
      median: seconds; the median over its turns of each turn's median.
      fastest: seconds of the fastest call.
      loss: the loss that it computed.
    """

    median: float
    fastest: float
    loss: float


def rotate(
    contestants: Mapping[str, Callable[[], Turn]], *, rounds: int, seconds: float
) -> dict[str, Result | None]:
    """Runs all contestants in rounds, see `benchmarks.timing.turns`.

    Returns:
      The result of each contestant, or None for one that failed. A contestant that failed has no
      further turn.
    """
    failed: set[str] = set()

    def guarded(name: str, run: Callable[[], Turn]) -> Callable[[], Turn | None]:
        def turn() -> Turn | None:
            if name not in failed:
                try:
                    return run()
                except CommandError as error:
                    progress(f"{name} failed: {error}")
                    failed.add(name)
            return None

        return turn

    guards = {name: guarded(name, run) for name, run in contestants.items()}
    all_turns = turns(guards, rounds=rounds, seconds=seconds)
    return {
        name: None if name in failed else _result([turn for turn in contestant_turns if turn])
        for name, contestant_turns in all_turns.items()
    }


def _result(turns: Sequence[Turn]) -> Result:
    return Result(
        median=statistics.median(statistics.median(seconds) for seconds, _ in turns),
        fastest=min(min(seconds) for seconds, _ in turns),
        loss=turns[-1][1],
    )


# Returns the result of another entry at the batch size of the cell.
FindResult = Callable[[str | None], Result | str | None]
# Computes a table cell from an entry and its result.
CellNumber = Callable[[Entry, Result, FindResult], float | None]


class Comparison:
    """The results of every entry at every batch size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        # A text says why there is no result.
        self._results: dict[tuple[str, int], Result | str] = {}

    def run(self, workers: Mapping[str, Worker], *, rounds: int, seconds: float) -> None:
        """Lets all entries take turns, one batch size after the other."""
        for rows in self._sizes:
            entries = [entry for entry in ENTRIES if rows <= entry.most]
            contestants = {
                entry.name: functools.partial(workers[entry.environment].turn, entry.name, rows)
                for entry in entries
                if entry.environment in workers
            }
            progress(f"B = {rows}: {len(contestants)} contestants in rotation")
            results = rotate(contestants, rounds=rounds, seconds=seconds)
            for entry in entries:
                reason = "failed" if entry.name in results else "absent"
                self._results[entry.name, rows] = results.get(entry.name) or reason

    def print(self) -> None:
        """Prints the tables: milliseconds, ratios, and differences of the losses."""
        self._table("Milliseconds, medians", lambda _, result, __: result.median * 1e3)
        self._table("Milliseconds, fastest call", lambda _, result, __: result.fastest * 1e3)
        self._table(
            "Times the matmul, medians", lambda _, result, find: _ratio(result, find(MATMUL))
        )
        self._table(
            "Times ours of the same kind, medians",
            lambda entry, result, find: _ratio(result, find(entry.rival)),
        )
        self._table(
            "Loss: difference from ours where the definition is the same",
            lambda entry, result, find: _difference(result, find(entry.equals)),
        )

    def _table(self, title: str, number: CellNumber) -> None:
        def cell(entry: Entry, rows: int) -> float | str | None:
            result = self._results.get((entry.name, rows))
            if not isinstance(result, Result):
                return result
            return number(entry, result, lambda name: self._results.get((name or "", rows)))

        lines = [(entry.title, [cell(entry, rows) for rows in self._sizes]) for entry in ENTRIES]
        filled = [line for line in lines if any(value is not None for value in line[1])]
        print_columns(title, [f"B = {rows}" for rows in self._sizes], filled)


def _ratio(result: Result, base: Result | str | None) -> float | None:
    return result.median / base.median if isinstance(base, Result) else None


def _difference(result: Result, other: Result | str | None) -> float | None:
    return abs(result.loss - other.loss) if isinstance(other, Result) else None
