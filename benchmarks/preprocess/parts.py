"""What is measured: speed, memory, a peer, resuming, many images. Each part prints its tables."""

import argparse
import dataclasses
import functools
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.preprocess.commands import CommandError, Done
from benchmarks.preprocess.contestants import (
    Contestant,
    command,
    commands,
    killed,
    peers,
    pools,
)
from benchmarks.preprocess.photos import KINDS, Kind, photos
from benchmarks.timing import print_columns

# A job so small that it is nothing but start-up.
FEW = 8
SHARDS, SHARE = 50, 0.9  # of a job that is killed: its shards, and how many of them are finished
# Where a job takes hardly longer than its start-up, the difference says nothing.
CLEARLY_MORE = 1.2

Row = tuple[str, Sequence[float | str | None]]
FAILED = ["failed"]
T = TypeVar("T")


def progress(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Bench:
    """Runs parts.

    Attributes:
      flags: the command line.
      folder: for pictures and outputs.
      failures: what did not run to its end.
    """

    flags: argparse.Namespace
    folder: Path
    failures: int = 0

    def speed(self, kind: Kind) -> None:
        """The command against bare pools."""
        contestants = {**pools(kind), **commands(kind)}
        self._compare(kind, contestants, "against bare pools")

    def peer(self, kind: Kind) -> None:
        """The command against TensorFlow Datasets."""
        if importlib.util.find_spec("tensorflow_datasets") is None:
            print("\nAgainst TensorFlow Datasets: absent, pip install tensorflow-datasets")
            return
        contestants = {**peers(kind, self._count(kind)), **commands(kind)}
        self._compare(kind, contestants, "against TensorFlow Datasets")

    def memory(self, kind: Kind) -> None:
        """Peaks at several sizes."""
        contestants = commands(kind)
        peaks: dict[str, list[float | None]] = {name: [] for name in contestants}
        for size in self.flags.memory:
            with photos(self.folder, kind, size) as images:
                for name, contestant in contestants.items():
                    progress(f"memory: {size:,} images, {kind}, {name}")
                    done = self._once(name, contestant, images)
                    peaks[name].append(_megabytes([done] if done else []))
        rows: list[Row] = []
        for name, (*found,) in peaks.items():
            known = [peak for peak in found if peak]
            rise = f"{known[-1] - known[0]:+.0f}" if len(known) == len(found) else None
            rows.append((name, [*found, rise]))
        columns = [*(f"{size:,}" for size in self.flags.memory), "rise"]
        print_columns(f"Memory of all processes at most, MB: {kind}, images", columns, rows)

    def resume(self, kind: Kind) -> None:
        """What is left to do for a job that was killed when it was nearly done."""
        count = self._count(kind)
        shard = f"--gin_param=preprocess.images_per_shard = {max(1, count // SHARDS)}"
        job = command(kind, shard)
        finished: list[float] = []
        with (
            photos(self.folder, kind, count) as images,
            photos(self.folder, kind, FEW) as few,
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
        ):
            whole = Path(folder) / "out"
            progress(f"resume: {count:,} images, {kind}")
            self._guarded("the whole job", lambda: job(images, whole))
            shards = sum(1 for _ in whole.rglob("*.tfrecord-*-of-*"))

            def resumed(images: Path, output: Path) -> Done:
                done = killed(kind, images, output, shard, shards=round(SHARE * shards))
                finished.append(done / max(shards, 1))
                return job(images, output)

            runs: dict[str, Contestant] = {
                "the whole job": job,
                "resumed": resumed,
                "finished": lambda images, _: job(images, whole),
                "start-up": lambda _, output: job(few, output),
            }
            turns = {
                name: functools.partial(self._once, name, run_once, images)
                for name, run_once in runs.items()
            }
            found = self._rotate(turns, f"resume: {count:,} images, {kind}")
        title = f"{count:,} images, {kind}: killed with kill -9"
        if not all(found.values()):
            print_columns(title, ["s"], [("the command", FAILED)])
            return
        all_, rest, listing, start_up = (_seconds(found[name]) for name in runs)
        done = f"{min(finished):.0%}" if finished else "none"
        rows: list[Row] = [
            ("the whole job", [all_, 1.0]),
            (f"once more, {done} of its shards finished", [rest, rest / all_]),
            ("once more, all finished: start-up and listing", [listing, listing / all_]),
            (f"{FEW} images: start-up", [start_up, start_up / all_]),
        ]
        print_columns(title, ["s", "share"], rows)
        if all_ > CLEARLY_MORE * listing:
            left = (rest - listing) / (all_ - listing)
            print(f"  without start-up and listing: {left:.1%} of the whole job's time")

    def many(self) -> None:
        """One large job."""
        kind, count, links = KINDS["small"], self.flags.many, self.flags.links
        with photos(self.folder, kind, count, links=links) as images:
            progress(f"many: {count:,} images")
            done = self._once("many", command(kind), images)
        made = "hard links to few files" if links else "no two alike"
        cells: Sequence[float | str | None] = FAILED
        if done:
            cells = [done.seconds, count / done.seconds, _megabytes([done])]
        title = f"{count:,} images, {made}: {kind}"
        print_columns(title, ["s", "images/s", "MB"], [("pipeline.main", cells)])

    def _count(self, kind: Kind) -> int:
        return self.flags.images if kind == KINDS["small"] else self.flags.large

    def _compare(self, kind: Kind, contestants: Mapping[str, Contestant], what: str) -> None:
        """Everyone takes turns, on all images and on few: the difference is without start-up."""
        count = self._count(kind)
        title = f"{count:,} images, {kind}, {what}"
        with photos(self.folder, kind, count) as images, photos(self.folder, kind, FEW) as few:
            whole, small = (
                {
                    name: functools.partial(self._once, name, contestant, inputs)
                    for name, contestant in contestants.items()
                }
                for inputs in (images, few)
            )
            turns = {(name, runs is small): runs[name] for name in whole for runs in (small, whole)}
            found = self._rotate(turns, title)
        base: tuple[float, float | None] | None = None
        rows: list[Row] = []
        for name in contestants:
            if not (found[name, True] and found[name, False]):
                rows.append((name, FAILED))
                continue
            seconds, start_up = _seconds(found[name, False]), _seconds(found[name, True])
            clear = seconds > CLEARLY_MORE * start_up
            net = (count - FEW) / (seconds - start_up) if clear else None
            rate = count / seconds
            base = base or (rate, net)
            net_times = net / base[1] if net and base[1] else None
            memory = _megabytes(found[name, False])
            rows.append((name, [seconds, rate, rate / base[0], start_up, net, net_times, memory]))
        columns = ["s", "images/s", "x", "start-up", "net/s", "net x", "MB"]
        print_columns(title, columns, rows)
        print(
            f"  medians of {self.flags.rounds} rounds, in turns; start-up: s of {FEW} images;"
            " net: without it;\n  x: times the first row; MB: of all processes at most"
        )

    def _rotate(
        self, turns: Mapping[T, Callable[[], Done | None]], what: str
    ) -> dict[T, list[Done]]:
        """What each returns in each of its turns; nothing for one that failed."""
        found: dict[T, list[Done]] = {name: [] for name in turns}
        failed = set()
        for number in range(self.flags.rounds):
            progress(f"{what}: round {number + 1} of {self.flags.rounds}")
            for name, turn in turns.items():
                if name in failed:
                    continue
                if done := turn():
                    found[name].append(done)
                else:
                    failed.add(name)
        return {name: [] if name in failed else runs for name, runs in found.items()}

    def _once(self, name: str, contestant: Contestant, images: Path) -> Done | None:
        """One run into an output of its own; None if it failed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return self._guarded(name, lambda: contestant(images, Path(folder) / "out"))

    def _guarded(self, name: str, call: Callable[[], Done]) -> Done | None:
        try:
            return call()
        except CommandError as error:
            progress(f"{name} failed: {error}")
            self.failures += 1
            return None


def _seconds(runs: Sequence[Done]) -> float:
    return statistics.median(run.seconds for run in runs)


def _megabytes(runs: Sequence[Done]) -> float | None:
    """The largest peak, None where there is none."""
    peaks = [run.peak for run in runs if run.peak]
    return max(peaks) / 1e6 if peaks else None
