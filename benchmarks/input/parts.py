"""The parts of the benchmark: speed, first batches, plans and peers, each in child processes."""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.input.child import BATCH, K, P
from benchmarks.input.data import NAME, SPLIT, DataSet
from benchmarks.processes import ask, peer_python
from benchmarks.tables import Row, print_columns, progress
from benchmarks.timing import Rotation

SPEED, OURS, PEERS, PLANS = (
    f"benchmarks.input.{name}" for name in ("speed", "ours", "peers", "plans")
)
SIMILARITY_ENVIRONMENT = "tfa"  # the peers' environment with TensorFlow Similarity
TITLES = {
    "files": "train_batches",
    "memory": "train_batches, MemoryRecords",
    "bare": "bare sequential read",
    "bare, groups": "bare sequential read, decoded in groups",
}
KINDS = ("uniform", "sqrt", "size", "hard")


@dataclasses.dataclass
class Bench:
    """Runs the parts.

    Attributes:
      flags: the command line.
      folder: the folder of the data sets.
      sets: the data sets; the last one is for the peers.
      rotation: runs the contestants and counts the failures.
    """

    flags: argparse.Namespace
    folder: Path
    sets: Sequence[DataSet]

    def __post_init__(self) -> None:
        self.rotation = Rotation(self.flags.rounds)

    def speed(self) -> None:
        """Compares `train_batches` with bare reads of each data set."""
        for data in self.sets:
            progress(f"speed: {data}")
            request = {**self._request(data), "memory": self._fits_in_memory(data)}
            counts = self._ask(str(data), SPEED, request) or {}
            rows: list[Row] = []
            for name, turns in counts.items():
                medians, bare = _medians(turns), _medians(counts["bare"])
                rates = medians["later"], medians["later"] / bare["later"]
                cpu = medians["cpu"], medians["cpu"] / bare["cpu"]
                rows.append((TITLES[name], [*rates, *cpu, medians["first"], medians["whole"]]))
            columns = ["images/s", "x", "CPU us", "x", "first, s", "with it/s"]
            print_columns(f"{data}: batches of {P} x {K}", columns, rows)
        print(
            f"  Medians of {self.flags.rounds} turns of {self._read():,} images. images/s and CPU"
            " us per image (all threads): after the first batch.\n  x: relative to the bare read."
            " first, s: until the first batch, with planning and drawing. with it/s: images per\n"
            "  second including the first batch."
        )

    def first(self) -> None:
        """Measures the time from the index on disk to the first batch, in new processes."""
        names = ["load_index", "plan", "build", "next", "first", "import", "import_ours"]
        turns: dict[str, Callable[[], dict[str, float]]] = {}
        for data in self.sets:
            for title, planned in (("a chunk as in training", None), ("100 steps", 100 * BATCH)):
                turns[f"{data}, {title}"] = self._ours(data, data.classes, BATCH, planned)
        rows: list[Row] = [
            (title, [_median(runs, name) for name in names])
            for title, runs in self.rotation.run("first batch", turns).items()
        ]
        columns = ["index", "plan", "build", "next", "all", "import TF", "imp. ours"]
        print_columns("First batch: seconds", columns, rows)
        print("  all: without the imports. build: train_batches, which plans and draws the chunk.")

    def plan(self) -> None:
        """Measures batch plans without images."""
        images, largest = self.flags.plan_images, max(self.flags.plan_classes)
        turns: dict[str, Callable[[], dict[str, Any]]] = {
            weighting: functools.partial(
                ask, PLANS, {"classes": largest, "images": images, "weighting": weighting}
            )
            for weighting in KINDS[:3]
        }
        rows: list[Row] = [
            (weighting, [_median(runs, name) for name in ("seconds", "kept", "peak")])
            for weighting, runs in self.rotation.run("plan: set-up", turns).items()
        ]
        title = f"BatchPlan: {largest:,} classes, {largest * images:,} rows"
        print_columns(title, ["seconds", "MB kept", "MB peak"], rows)
        self._plan_steps()

    def _plan_steps(self) -> None:
        """Measures the steps of batch plans."""
        images = self.flags.plan_images
        rows: list[Row] = []
        first_rows: list[Row] = []
        for classes in self.flags.plan_classes:
            progress(f"plan: steps, {classes:,} classes")
            request = {"classes": classes, "images": images, "seconds": self.flags.plan_seconds}
            for shape, kinds in (self._ask(f"{classes:,}", PLANS, request) or {}).items():
                title = f"{classes:,} classes, {shape}"
                first, later = (
                    [kinds[kind][i] if kind in kinds else None for kind in KINDS] for i in (0, 1)
                )
                rows.append((title, later))
                first_rows.append((title, [value and value / 1e3 for value in first]))
        print_columns("BatchPlan.batch(step): microseconds, medians", KINDS, rows)
        print_columns("  the first step, which starts a new pass: milliseconds", KINDS, first_rows)
        print("  hard: half of the classes are chosen by int8 centres of 128 dimensions")

    def peers(self) -> None:
        """Compares with peers, on the last data set or on the files of some of its classes."""
        data, few, read = self.sets[-1], self.flags.class_files, self._read()
        turns: dict[str, Callable[[], dict[str, Any]]] = {
            f"train_batches, {data.classes:,} classes": self._ours(data, data.classes, read, read),
            f"train_batches, the first {few:,} classes": self._ours(data, few, read, read),
            "bare sequential read": self._peer("bare", data),
            f"choose_from_datasets, {few:,} class files": self._peer("choose", data),
            f"interleave, {few:,} class files": self._peer("interleave", data),
        }
        python = peer_python(SIMILARITY_ENVIRONMENT, self.flags.peers)
        title = f"TensorFlow Similarity, {data.classes:,} classes"
        if python:
            turns["bare sequential read, its TensorFlow"] = self._peer("bare", data, python)
            turns[title] = self._peer("similarity", data, python)
        rows: list[Row] = []
        for name, runs in self.rotation.run("peers", turns).items():
            if not runs:
                rows.append((name, ["failed"]))
                continue
            medians = _medians(runs)
            cells = [medians[column] for column in ("first", "later", "cpu", "whole")]
            cells += [_median(runs, "megabytes"), _median(runs, "exact")]
            rows.append((name, [*cells, runs[0].get("tensorflow")]))
        if not python:
            rows.append((title, ["not installed: make peers"]))
        columns = ["first, s", "images/s", "CPU us", "with it/s", "MB", "exact", "TF"]
        print_columns(f"Peers: {data}, batches of {P} x {K}", columns, rows)
        print(
            f"  Medians of {self.flags.rounds} turns of {read:,} images, each in a new process."
            " images/s and CPU us per image: after the first\n  batch. first, s: until the first"
            " batch, without imports. with it/s: images per second including the first batch.\n"
            "  MB: most memory of the process. exact: share of batches with exactly"
            f" {P} classes and {K} images of each;\n  only train_batches and choose_from_datasets"
            " guarantee it. The others reach it where the images of a\n  class lie side by side and"
            f" their number is a multiple of {K}."
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

    def _fits_in_memory(self, data: DataSet) -> bool:
        files = data.path(self.folder).iterdir()
        return sum(file.stat().st_size for file in files) <= 1e6 * self.flags.memory

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

    def _ask(self, name: str, module: str, request: dict) -> Any:
        return self.rotation.attempt(name, lambda: ask(module, request))


def _median(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [run[name] for run in runs if run[name] is not None]
    return statistics.median(values) if values else None


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Computes medians of what `consume` returned.

    Returns:
      "first": seconds until the first batch.
      "later", "cpu": images per second and CPU microseconds per image, after the first batch.
      "whole": images per second including the first batch.
    """

    def median(value: Callable[[Mapping[str, float]], float]) -> float:
        return statistics.median(map(value, runs))

    return {
        "first": median(lambda run: run["first"]),
        "later": median(lambda run: (run["images"] - BATCH) / (run["seconds"] - run["first"])),
        "cpu": median(lambda run: 1e6 * (run["cpu"] - run["first_cpu"]) / (run["images"] - BATCH)),
        "whole": median(lambda run: run["images"] / run["seconds"]),
    }
