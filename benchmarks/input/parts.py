"""What is measured, each part in processes of its own: speed, first batches, plans, peers."""

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.input.child import BATCH, K, P
from benchmarks.input.children import ask
from benchmarks.input.data import NAME, SPLIT, DataSet
from benchmarks.mining.processes import interpreter
from benchmarks.preprocess.commands import CommandError
from benchmarks.timing import print_columns

SPEED, OURS, PEERS, PLANS = (
    f"benchmarks.input.{name}" for name in ("speed", "ours", "peers", "plans")
)
# Where TensorFlow Similarity may be: an environment of its own, or that of benchmarks.mining.
ENVIRONMENTS = ("tfa",)
TITLES = {
    "files": "train_batches",
    "memory": "train_batches, MemoryRecords",
    "bare": "bare sequential read",
    "bare, groups": "bare sequential read, decoded in groups",
}
KINDS = ("uniform", "sqrt", "size", "hard")

Row = tuple[str, Sequence[float | str | None]]
T = TypeVar("T")


def progress(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Bench:
    """Runs parts.

    Attributes:
      flags: the command line.
      folder: of the data sets.
      sets: data sets, the last one that of the peers.
      failures: what did not run to its end.
    """

    flags: argparse.Namespace
    folder: Path
    sets: Sequence[DataSet]
    failures: int = 0

    def speed(self) -> None:
        """`train_batches` against bare reads of each data set."""
        for data in self.sets:
            progress(f"speed: {data}")
            found = self._ask(str(data), SPEED, {**self._request(data), **self._size(data)})
            rows: list[Row] = []
            for name, turns in (found or {}).items():
                of, base = _medians(turns), _medians(found["bare"])
                ratios = of["later"] / base["later"], of["cpu"] / base["cpu"]
                cells = [of["later"], ratios[0], of["cpu"], ratios[1], of["first"], of["whole"]]
                rows.append((TITLES[name], cells))
            columns = ["images/s", "x", "CPU us", "x", "first, s", "with it/s"]
            print_columns(f"{data}: batches of {P} x {K}", columns, rows)
        print(
            f"  medians of {self.flags.rounds} turns of {self._read():,} images; images/s and CPU"
            " us an image, all threads, after the first\n  batch; x: times the bare read; first, s:"
            " until it, all planned and drawn; with it/s: images a second with that"
        )

    def first(self) -> None:
        """From an index on disk to the first batch, in fresh processes."""
        names = ["load_index", "plan", "build", "next", "first"]
        turns: dict[str, Callable[[], dict[str, float]]] = {}
        for data in self.sets:
            for title, planned in (("a chunk as in training", None), ("100 steps", 100 * BATCH)):
                turns[f"{data}, {title}"] = self._ours(data, data.classes, BATCH, planned)
        found = self._rotate("first batch", turns)
        rows: list[Row] = [
            (title, [_median(runs, name) for name in [*names, "import", "import_ours"]])
            for title, runs in found.items()
        ]
        columns = ["index", "plan", "build", "next", "all", "import TF", "imp. ours"]
        print_columns("First batch: seconds", columns, rows)
        print("  all: but for the imports; build: train_batches, which plans and draws the chunk")

    def plan(self) -> None:
        """Batch plans alone."""
        images, largest = self.flags.plan_images, max(self.flags.plan_classes)
        turns: dict[str, Callable[[], dict[str, Any]]] = {
            weighting: functools.partial(
                ask, PLANS, {"classes": largest, "images": images, "weighting": weighting}
            )
            for weighting in KINDS[:3]
        }
        found = self._rotate("plan: set-up", turns)
        rows: list[Row] = [
            (weighting, [_median(runs, name) for name in ("seconds", "kept", "peak")])
            for weighting, runs in found.items()
        ]
        title = f"BatchPlan: {largest:,} classes, {largest * images:,} rows"
        print_columns(title, ["seconds", "MB kept", "MB peak"], rows)

        rows, first_rows = [], []
        for classes in self.flags.plan_classes:
            progress(f"plan: steps, {classes:,} classes")
            request = {"classes": classes, "images": images, "seconds": self.flags.plan_seconds}
            for shape, kinds in (self._ask(f"{classes:,}", PLANS, request) or {}).items():
                title = f"{classes:,} classes, {shape}"
                first, later = (
                    [kinds[kind][i] if kind in kinds else None for kind in KINDS] for i in (0, 1)
                )
                rows.append((title, later))
                first_rows.append((title, [micro and micro / 1e3 for micro in first]))
        print_columns("BatchPlan.batch(step): microseconds, medians", KINDS, rows)
        print_columns("  the first one, of a new pass: milliseconds", KINDS, first_rows)
        print("  hard: half of the classes, by int8 centres of 128 dimensions")

    def peers(self) -> None:
        """Peers, on the last data set or on files of some of its classes."""
        data, few = self.sets[-1], self.flags.class_files
        turns: dict[str, Callable[[], dict[str, Any]]] = {
            f"train_batches, {data.classes:,} classes": self._ours(
                data, data.classes, self._read(), self._read()
            ),
            f"train_batches, the first {few:,} classes": self._ours(
                data, few, self._read(), self._read()
            ),
            "bare sequential read": self._peer("bare", data),
            f"choose_from_datasets, {few:,} class files": self._peer("choose", data),
            f"interleave, {few:,} class files": self._peer("interleave", data),
        }
        pythons = [interpreter(name, self.flags.peers) for name in ENVIRONMENTS]
        python = next((each for each in pythons if each), None)
        title = f"TensorFlow Similarity, {data.classes:,} classes"
        if python:
            turns["bare sequential read, its TensorFlow"] = self._peer("bare", data, python)
            turns[title] = self._peer("similarity", data, python)
        found = self._rotate("peers", turns)
        rows: list[Row] = []
        for name, runs in found.items():
            if not runs:
                rows.append((name, ["failed"]))
                continue
            of = _medians(runs)
            rows.append(
                (
                    name,
                    [
                        of["first"],
                        of["later"],
                        of["cpu"],
                        of["whole"],
                        _median(runs, "megabytes"),
                        _median(runs, "exact"),
                        runs[0].get("tensorflow"),
                    ],
                )
            )
        if not python:
            rows.append((title, ["not installed: make peers"]))
        columns = ["first, s", "images/s", "CPU us", "with it/s", "MB", "exact", "TF"]
        print_columns(f"Peers: {data}, batches of {P} x {K}", columns, rows)
        print(
            f"  medians of {self.flags.rounds} turns of {self._read():,} images, fresh processes;"
            " images/s and CPU us an image after the first\n  batch; first, s: until it, imports"
            " left out; with it/s: images a second with that; MB: of the process at most;\n"
            f"  exact: share of batches of {P} classes with {K} images each, which others than"
            " train_batches and\n  choose_from_datasets owe to classes whose images lie side by"
            f" side and are a multiple of {K}"
        )

    def _read(self) -> int:
        return self.flags.read // BATCH * BATCH

    def _request(self, data: DataSet) -> dict[str, Any]:
        return {
            "data": str(data.path(self.folder)),
            "side": data.side,
            "read": self._read(),
            "rounds": self.flags.rounds,
        }

    def _size(self, data: DataSet) -> dict[str, bool]:
        files = data.path(self.folder).iterdir()
        return {"memory": sum(file.stat().st_size for file in files) <= 1e6 * self.flags.memory}

    def _ours(
        self, data: DataSet, classes: int, read: int, planned: int | None
    ) -> Callable[[], dict[str, Any]]:
        request = {**self._request(data), "classes": classes, "read": read, "planned": planned}
        return lambda: ask(OURS, request)

    def _peer(
        self, name: str, data: DataSet, python: Path | None = None
    ) -> Callable[[], dict[str, Any]]:
        request = {
            **self._request(data),
            "name": name,
            "shards": f"{NAME}-{SPLIT}.tfrecord-*",
            "class_files": str(data.class_files(self.folder)),
        }
        return lambda: ask(PEERS, request, python=python)

    def _rotate(
        self, what: str, turns: Mapping[str, Callable[[], dict]]
    ) -> dict[str, list[dict[str, Any]]]:
        """What each returns in each of its turns; nothing for one that failed."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
        failed = set()
        for number in range(self.flags.rounds):
            for name, turn in turns.items():
                if name in failed:
                    continue
                progress(f"{what}: round {number + 1} of {self.flags.rounds}: {name}")
                done = self._guarded(name, turn)
                if done is None:
                    failed.add(name)
                    found[name] = []
                else:
                    found[name].append(done)
        return found

    def _ask(self, name: str, module: str, request: dict) -> Any:
        return self._guarded(name, lambda: ask(module, request))

    def _guarded(self, name: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except CommandError as error:
            progress(f"{name} failed: {error}")
            self.failures += 1
            return None


def _median(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [run[name] for run in runs if run[name] is not None]
    return statistics.median(values) if values else None


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of what `consume` counted.

    Returns:
      "first", seconds; "later" images a second and "cpu" us an image, both after the first batch;
      "whole", images a second in all.
    """

    def median(of: Callable[[Mapping[str, float]], float]) -> float:
        return statistics.median(map(of, runs))

    return {
        "first": median(lambda run: run["first"]),
        "later": median(lambda run: (run["images"] - BATCH) / (run["seconds"] - run["first"])),
        "cpu": median(lambda run: 1e6 * (run["cpu"] - run["first_cpu"]) / (run["images"] - BATCH)),
        "whole": median(lambda run: run["images"] / run["seconds"]),
    }
