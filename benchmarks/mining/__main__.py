"""Times triplet losses, forward and backward, against one matmul and against the peers' losses.

python -m benchmarks.mining

All contestants take turns on two cores, on random embeddings of unit length that are equal for all.
The peers run in their own environments, which `make peers` installs; missing ones are left out.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commandline import add_peers_flag
from benchmarks.mining.comparison import Comparison, rotate
from benchmarks.mining.contestants import LARGEST, REPLICAS, WORKERS, share
from benchmarks.mining.processes import Worker, keep_to_cores
from benchmarks.mining.worker import CLASS_SIZE, WIDTH
from benchmarks.processes import CORES, CommandError, peer_python
from benchmarks.tables import Row, machine, print_columns, progress
from tripletmill.cli.arguments import Parser, positive

STRATEGIES = {"hard": "hard", "semi-hard": "semihard"}


def print_shares(worker: Worker, sizes: Sequence[int], *, rounds: int, seconds: float) -> None:
    """Prints the time of one replica's share of a global batch.

    The second row of each pair compares the shares' total with the time of a single replica.
    """
    lines: list[Row] = []
    for rows in sizes:
        for title, strategy in STRATEGIES.items():
            progress(f"{title}, B = {rows}: shares of {REPLICAS} replicas in rotation")
            names = [share(strategy, replicas) for replicas in REPLICAS]
            turns = {name: functools.partial(worker.turn, name, rows) for name in names}
            results = rotate(turns, rounds=rounds, seconds=seconds)
            medians = [result.median if (result := results[name]) else None for name in names]
            single = medians[0]
            totals = [
                median and single and replicas * median / single
                for replicas, median in zip(REPLICAS, medians, strict=True)
            ]
            milliseconds = [median and median * 1e3 for median in medians]
            lines.append((f"{title}, B = {rows}, ms", milliseconds))
            lines.append(("  R x time / time of R = 1", totals))
    print_columns(
        "One replica's share, B / R anchors against B rows", [f"R = {r}" for r in REPLICAS], lines
    )


def print_memory(sizes: Sequence[int]) -> None:
    """Prints the peak memory above the inputs and the time of a call; each in a new process."""
    lines: list[Row] = []
    for rows in sizes:
        for title, strategy in STRATEGIES.items():
            progress(f"{title}, B = {rows}: memory")
            try:
                with Worker("ours", Path(sys.executable)) as worker:
                    calls = 3 if rows <= LARGEST else 2
                    peak, seconds = worker.memory(strategy, rows, calls=calls)
                    lines.append((f"{title}, B = {rows}", [peak / 1e6, seconds]))
            except CommandError as error:
                progress(f"{title} failed: {error}")
                lines.append((f"{title}, B = {rows}", ["failed", "failed"]))
    print_columns("Memory above the inputs, the gradient included", ["MB", "seconds"], lines)


def start_workers(
    peers: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Starts a worker in each environment that is installed.

    Args:
      peers: the folder with the peers' environments.
      stack: ends the workers when it closes.

    Returns:
      The workers that run, and for each environment its package versions or why it is missing.
    """
    workers: dict[str, Worker] = {}
    notes: dict[str, str] = {}
    for name in WORKERS:
        python = peer_python(name, peers)
        if python is None:
            notes[name] = "not installed: make peers"
            continue
        progress(f"starting {name}")
        try:
            workers[name] = stack.enter_context(Worker(name, python))
        except CommandError as error:
            progress(f"{name} does not start: {error}")
            notes[name] = "does not start"
            continue
        versions = workers[name].versions.items()
        notes[name] = ", ".join(f"{package} {version}" for package, version in versions)
    return workers, notes


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    keep_to_cores()
    with contextlib.ExitStack() as stack:
        workers, notes = start_workers(flags.peers, stack)
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
    parser = Parser(
        prog="python -m benchmarks.mining",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def batch_sizes(name: str, default: list[int], text: str) -> None:
        parser.add_argument(name, default=default, help=text, type=positive, nargs="*", metavar="B")

    batch_sizes(
        "--sizes",
        [256, 512, 1024, 2048, 4096, LARGEST],
        "batch sizes of the comparison; none: no comparison",
    )
    batch_sizes("--shares", [4096, LARGEST], "batch sizes of the replicas' shares")
    batch_sizes("--memory", [LARGEST, 65536], "batch sizes of the memory table")
    parser.add_argument("--rounds", default=9, type=positive, help="turns per batch size (9)")
    parser.add_argument(
        "--seconds", default=25.0, type=float, help="time after which 3 turns are enough (25)"
    )
    add_peers_flag(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
