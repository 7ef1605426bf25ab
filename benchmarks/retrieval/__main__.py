"""Trains with several losses and evaluates the retrieval of classes that training never saw.

python -m benchmarks.retrieval --data_dir=data/omniglot [--parts replicas peers]

replicas: the trainer, mining over all of four logical replicas, and within each of them.
peers: a plain network, with this project's losses and with those of the peers (`make peers`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commandline import add_peers_flag
from benchmarks.retrieval.peers import peers
from benchmarks.retrieval.replicas import LOSSES, replicas
from benchmarks.tables import machine
from tripletmill.cli.arguments import Parser, positive

PARTS = {"replicas": replicas, "peers": peers}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="a data set with the splits train and test")
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="default: all")
    add("--steps", default=600, type=positive, metavar="N", help="training steps (600)")
    add("--classes", default=32, type=positive, metavar="P", help="classes in a batch (32)")
    add(
        "--images",
        default=8,
        type=positive,
        metavar="K",
        help="images of each class in a batch (8)",
    )
    text = "losses of the part replicas (default: all)"
    add("--losses", default=[*LOSSES], choices=LOSSES, nargs="+", help=text)
    add("--seeds", default=3, type=positive, metavar="N", help="runs of the part replicas (3)")
    add_peers_flag(parser)
    return parser.parse_args(arguments)


def main() -> None:
    flags = parse()
    print(f"Retrieval of unseen classes ({machine()})")
    for part in flags.parts:
        PARTS[part](flags)


if __name__ == "__main__":
    main()
