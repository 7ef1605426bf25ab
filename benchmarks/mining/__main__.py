"""Triplet losses, forward and backward, against one matmul and against their peers.

python -m benchmarks.mining

Everyone takes turns on the same random unit embeddings and on two cores; peers in processes of
their own environments, those of `make peers` that are installed.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mining.comparison import Comparison, progress, rotate
from benchmarks.mining.contestants import LARGEST, REPLICAS, WORKERS, share
from benchmarks.mining.processes import CORES, Worker, WorkerError, interpreter, keep_to_cores
from benchmarks.mining.worker import CLASS_SIZE, WIDTH
from benchmarks.timing import machine, print_columns
from tripletmill.cli.arguments import Parser, positive

STRATEGIES = {"hard": "hard", "semi-hard": "semihard"}


def print_shares(worker: Worker, sizes: Sequence[int], *, rounds: int, seconds: float) -> None:
    """Milliseconds of one replica's share of a global batch, and what all shares add up to."""
    lines: list[tuple[str, list[float | str | None]]] = []
    for rows in sizes:
        for title, strategy in STRATEGIES.items():
            progress(f"{title}, B = {rows}: shares of {REPLICAS} replicas in rotation")
            names = [share(strategy, replicas) for replicas in REPLICAS]
            turns = {name: functools.partial(worker.turn, name, rows) for name in names}
            found = rotate(turns, rounds=rounds, seconds=seconds)
            medians = [result.median if (result := found[name]) else None for name in names]
            whole = medians[0]
            lines += [
                (f"{title}, B = {rows}, ms", [t and t * 1e3 for t in medians]),
                (
                    "  R x time / time of R = 1",
                    [
                        t and whole and replicas * t / whole
                        for replicas, t in zip(REPLICAS, medians, strict=True)
                    ],
                ),
            ]
    print_columns(
        "One replica's share, B / R anchors against B rows", [f"R = {r}" for r in REPLICAS], lines
    )


def print_memory(sizes: Sequence[int]) -> None:
    """Megabytes above the inputs, at most, and seconds of a call; a process for each."""
    lines: list[tuple[str, list[float | str | None]]] = []
    for rows in sizes:
        for title, strategy in STRATEGIES.items():
            progress(f"{title}, B = {rows}: memory")
            try:
                with Worker("ours", Path(sys.executable)) as worker:
                    calls = 3 if rows <= LARGEST else 2
                    rise, seconds = worker.memory(strategy, rows, calls=calls)
                    lines.append((f"{title}, B = {rows}", [rise / 1e6, seconds]))
            except WorkerError as error:
                progress(f"{title} failed: {error}")
                lines.append((f"{title}, B = {rows}", ["failed", "failed"]))
    print_columns("Memory above the inputs, the gradient included", ["MB", "seconds"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    keep_to_cores()
    with contextlib.ExitStack() as stack:
        workers, notes = {}, {}
        for name in WORKERS:
            python = interpreter(name, flags.peers)
            if python is None:
                notes[name] = "not installed: make peers"
                continue
            progress(f"starting {name}")
            try:
                workers[name] = stack.enter_context(Worker(name, python))
            except WorkerError as error:
                progress(f"{name} does not start: {error}")
                notes[name] = "does not start"
                continue
            versions = workers[name].versions.items()
            notes[name] = ", ".join(f"{package} {version}" for package, version in versions)
        print(f"Triplet losses, forward and backward, on {CORES} cores ({machine()})")
        print(f"float32, D = {WIDTH}, K = {CLASS_SIZE}, margin 1, L2")
        for name, note in notes.items():
            print(f"  {name:6} {note}")
        if flags.sizes:
            comparison = Comparison(flags.sizes)
            comparison.run(workers, rounds=flags.rounds, seconds=flags.seconds)
            comparison.print()
        if flags.shares:
            print_shares(workers["ours"], flags.shares, rounds=flags.rounds, seconds=flags.seconds)
    if flags.memory:
        print_memory(flags.memory)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.mining")

    def batch_sizes(name: str, default: list[int], text: str) -> None:
        parser.add_argument(name, default=default, help=text, type=positive, nargs="*", metavar="B")

    batch_sizes("--sizes", [256, 512, 1024, 2048, 4096, LARGEST], "of the comparison")
    batch_sizes("--shares", [4096, LARGEST], "of the replicas' shares")
    batch_sizes("--memory", [LARGEST, 65536], "of the table of memory")
    parser.add_argument("--rounds", default=9, type=positive, help="turns each, at a batch size")
    parser.add_argument(
        "--seconds", default=25.0, type=float, help="after which 3 turns are enough"
    )
    parser.add_argument("--peers", default=".peers", type=Path, help="folder of their environments")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
