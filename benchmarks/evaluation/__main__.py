"""Measures exact neighbours and retrieval metrics, and compares the metrics with a peer's.

python -m benchmarks.evaluation [--parts speed peers] [--sizes 20000 100000]

speed: time and memory for all against all, on random classes of 20 rows.
peers: our values beside those of pytorch-metric-learning, which `make peers` installs.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.commandline import add_peers_flag
from benchmarks.evaluation.peers import peers
from benchmarks.memory import peak_bytes
from benchmarks.tables import Row, machine, print_columns
from trainer.retrieval.metrics import retrieval_metrics
from trainer.retrieval.neighbours import nearest_neighbours
from tripletmill.cli.arguments import Parser, positive

CLASS_SIZE = 20
# The standard deviation of the noise around a class centre, whose coordinates have deviation 1.
# With 1.0, a query's matches are its nearest neighbours; with 3.0, they are not.
SPREADS = {"classes apart": 1.0, "classes in each other": 3.0}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="default: all")
    add(
        "--sizes",
        default=[20_000],
        type=positive,
        metavar="N",
        nargs="+",
        help="numbers of rows (20000)",
    )
    add("--dim", default=128, type=positive, metavar="D", help="dimensions of an embedding (128)")
    add_peers_flag(parser)
    return parser.parse_args(arguments)


def random_classes(size: int, dim: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Makes random classes of CLASS_SIZE rows each.

    Returns:
      Unit-length embeddings float32 [size, dim] and their labels [size], class after class.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(size) // CLASS_SIZE
    centres = rng.standard_normal((labels[-1] + 1, dim), np.float32)
    rows = centres[labels] + spread * rng.standard_normal((size, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def speed(flags: argparse.Namespace) -> None:
    """Prints seconds and memory for comparing all rows with all rows."""
    rows: list[Row] = []
    retrieval_metrics(*random_classes(100, flags.dim, 1.0))  # TensorFlow's set-up is not timed
    for size in flags.sizes:
        for name, spread in SPREADS.items():
            embeddings, labels = random_classes(size, flags.dim, spread)
            work: dict[str, Callable[[], object]] = {
                "metrics": functools.partial(retrieval_metrics, embeddings, labels),
                "10 neighbours": functools.partial(nearest_neighbours, embeddings, 10),
            }
            for task, run in work.items():
                start = time.perf_counter()
                memory = peak_bytes(run)
                seconds = time.perf_counter() - start
                title = f"{task}, {size:,} x {size:,}, {name}"
                rows.append((title, (seconds, memory / 1e6, 1e9 * seconds / size**2)))
    print_columns(f"D = {flags.dim}", ("seconds", "MB more", "ns a pair"), rows)


PARTS = {"speed": speed, "peers": peers}


def main() -> None:
    flags = parse()
    print(f"Evaluation ({machine()})")
    for part in flags.parts:
        PARTS[part](flags)


if __name__ == "__main__":
    main()
