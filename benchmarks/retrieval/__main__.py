"""What comes of losses on Omniglot's unseen characters.

python -m benchmarks.retrieval --data_dir=data/omniglot [--parts replicas peers]

replicas: mining over four logical replicas against mining within each, by the trainer itself.
peers: a plain network with this project's losses and with those of `make peers`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.retrieval.peers import peers
from benchmarks.retrieval.replicas import LOSSES, replicas
from benchmarks.timing import machine
from tripletmill.cli.arguments import Parser, positive

PARTS = {"replicas": replicas, "peers": peers}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="a data set with train and test")
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="all without it")
    add("--steps", default=600, type=positive, metavar="N", help="of training (600)")
    add("--classes", default=32, type=positive, metavar="P", help="in a batch (32)")
    add("--images", default=8, type=positive, metavar="K", help="of each of them (8)")
    add("--losses", default=[*LOSSES], choices=LOSSES, nargs="+", help="of the replicas' runs")
    add("--seeds", default=3, type=positive, metavar="N", help="of the replicas' runs (3)")
    add("--peers", default=Path(".peers"), type=Path, help="folder of their environments")
    return parser.parse_args(arguments)


def main() -> None:
    flags = parse()
    print(f"Retrieval of unseen classes ({machine()})")
    for part in flags.parts:
        PARTS[part](flags)


if __name__ == "__main__":
    main()
