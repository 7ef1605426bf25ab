"""The parts of the benchmark: speed, memory, peer, resume and many. Each part prints its tables."""

import argparse
import dataclasses
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.preprocess.commands import Finished
from benchmarks.preprocess.contestants import (
    Contestant,
    command,
    commands,
    peers,
    pools,
    run_and_kill,
)
from benchmarks.preprocess.photos import KINDS, Kind, photos
from benchmarks.tables import Cell, Row, print_columns, progress
from benchmarks.timing import Rotation

# The images of a job that is so small that it takes only its start-up time.
FEW = 8
# A killed job has this many shards, and this share of them is finished when it is killed.
SHARDS, SHARE = 50, 0.9
# A job's time without start-up is shown only if the job takes this many times its start-up.
CLEARLY_MORE = 1.2
FAILED = ["failed"]


@dataclasses.dataclass
class Bench:
    """Runs the parts.

    Attributes:
      flags: the command line.
      folder: the folder for images and outputs.
      rotation: runs the contestants and counts the failures.
    """

    flags: argparse.Namespace
    folder: Path

    def __post_init__(self) -> None:
        self.rotation = Rotation(self.flags.rounds)

    def speed(self, kind: Kind) -> None:
        """Compares the command with bare pools."""
        contestants = {**pools(kind), **commands(kind)}
        self._compare(kind, contestants, "against bare pools")

    def peer(self, kind: Kind) -> None:
        """Compares the command with TensorFlow Datasets."""
        if importlib.util.find_spec("tensorflow_datasets") is None:
            print("\nAgainst TensorFlow Datasets: not installed; pip install tensorflow-datasets")
            return
        contestants = {**peers(kind, self._count(kind)), **commands(kind)}
        self._compare(kind, contestants, "against TensorFlow Datasets")

    def memory(self, kind: Kind) -> None:
        """Measures the peak memory for several numbers of images."""
        contestants = commands(kind)
        peaks: dict[str, list[float | None]] = {name: [] for name in contestants}
        for size in self.flags.memory:
            with photos(self.folder, kind, size) as images:
                for name, contestant in contestants.items():
                    progress(f"memory: {size:,} images, {kind}, {name}")
                    finished = self._attempt(name, contestant, images)
                    peaks[name].append(_megabytes([finished] if finished else []))
        rows: list[Row] = []
        for name, values in peaks.items():
            known = [peak for peak in values if peak]
            rise = f"{known[-1] - known[0]:+.0f}" if len(known) == len(values) else None
            rows.append((name, [*values, rise]))
        columns = [*(f"{size:,}" for size in self.flags.memory), "rise"]
        print_columns(f"Peak memory of all processes, MB: {kind}, images", columns, rows)

    def resume(self, kind: Kind) -> None:
        """Measures how long a job takes that was killed when it was nearly finished."""
        count = self._count(kind)
        shard_flag = f"--gin_param=preprocess.images_per_shard = {max(1, count // SHARDS)}"
        job = command(kind, shard_flag)
        shares: list[float] = []  # of shards that were finished when the job was killed
        with (
            photos(self.folder, kind, count) as images,
            photos(self.folder, kind, FEW) as few,
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
        ):
            whole = Path(folder) / "out"
            progress(f"resume: {count:,} images, {kind}")
            self.rotation.attempt("the whole job", lambda: job(images, whole))
            shards = sum(1 for _ in whole.rglob("*.tfrecord-*-of-*"))

            def resumed(images: Path, output: Path) -> Finished:
                finished = run_and_kill(
                    kind, images, output, shard_flag, shards=round(SHARE * shards)
                )
                shares.append(finished / max(shards, 1))
                return job(images, output)

            runs: dict[str, Contestant] = {
                "the whole job": job,
                "resumed": resumed,
                "finished": lambda images, _: job(images, whole),
                "start-up": lambda _, output: job(few, output),
            }
            turns = {name: self._turn(run, images) for name, run in runs.items()}
            results = self.rotation.run(f"resume: {count:,} images, {kind}", turns)
        title = f"{count:,} images, {kind}: killed with kill -9"
        if not all(results.values()):
            print_columns(title, ["s"], [("the command", FAILED)])
            return
        total, rest, listing, start_up = (_seconds(results[name]) for name in runs)
        share = f"{min(shares):.0%}" if shares else "none"
        rows: list[Row] = [
            ("the whole job", [total, 1.0]),
            (f"again, with {share} of its shards finished", [rest, rest / total]),
            ("again, with all finished: start-up and listing", [listing, listing / total]),
            (f"{FEW} images: start-up", [start_up, start_up / total]),
        ]
        print_columns(title, ["s", "share"], rows)
        if total > CLEARLY_MORE * listing:
            remaining = (rest - listing) / (total - listing)
            print(f"  without start-up and listing: {remaining:.1%} of the whole job's time")

    def many(self) -> None:
        """Measures one large job."""
        kind, count, links = KINDS["small"], self.flags.many, self.flags.links
        with photos(self.folder, kind, count, links=links) as images:
            progress(f"many: {count:,} images")
            finished = self._attempt("many", command(kind), images)
        files = "hard links to few files" if links else "no two alike"
        cells: Sequence[Cell] = FAILED
        if finished:
            cells = [finished.seconds, count / finished.seconds, _megabytes([finished])]
        title = f"{count:,} images, {files}: {kind}"
        print_columns(title, ["s", "images/s", "MB"], [("pipeline.main", cells)])

    def _count(self, kind: Kind) -> int:
        return self.flags.images if kind == KINDS["small"] else self.flags.large

    def _compare(self, kind: Kind, contestants: Mapping[str, Contestant], rivals: str) -> None:
        """Runs all contestants in turns, on all images and on few.

        The difference of the two times is the time without start-up.
        """
        count = self._count(kind)
        title = f"{count:,} images, {kind}, {rivals}"
        with photos(self.folder, kind, count) as images, photos(self.folder, kind, FEW) as few:
            turns = {}
            for name, contestant in contestants.items():
                turns[_start_up(name)] = self._turn(contestant, few)
                turns[name] = self._turn(contestant, images)
            results = self.rotation.run(title, turns)
        base: tuple[float, float | None] | None = None
        rows: list[Row] = []
        for name in contestants:
            if not (results[name] and results[_start_up(name)]):
                rows.append((name, FAILED))
                continue
            seconds, start_up = _seconds(results[name]), _seconds(results[_start_up(name)])
            clear = seconds > CLEARLY_MORE * start_up
            net = (count - FEW) / (seconds - start_up) if clear else None
            rate = count / seconds
            base = base or (rate, net)
            net_times = net / base[1] if net and base[1] else None
            memory = _megabytes(results[name])
            rows.append((name, [seconds, rate, rate / base[0], start_up, net, net_times, memory]))
        columns = ["s", "images/s", "x", "start-up", "net/s", "net x", "MB"]
        print_columns(title, columns, rows)
        print(
            f"  Medians of {self.flags.rounds} rounds. start-up: seconds for {FEW} images."
            " net: without start-up.\n  x: relative to the first row. MB: peak memory of all"
            " processes."
        )

    def _turn(self, contestant: Contestant, images: Path) -> Callable[[], Finished]:
        """Returns a function that runs a contestant once, with a temporary output folder."""

        def turn() -> Finished:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                return contestant(images, Path(folder) / "out")

        return turn

    def _attempt(self, name: str, contestant: Contestant, images: Path) -> Finished | None:
        return self.rotation.attempt(name, self._turn(contestant, images))


def _start_up(name: str) -> str:
    """Returns the title of a contestant's runs on few images."""
    return f"{name}, {FEW} images"


def _seconds(runs: Sequence[Finished]) -> float:
    return statistics.median(run.seconds for run in runs)


def _megabytes(runs: Sequence[Finished]) -> float | None:
    """Returns the largest peak, or None if no peak is known."""
    peaks = [run.peak for run in runs if run.peak]
    return max(peaks) / 1e6 if peaks else None
