"""Batches of P x K by offset: speed, first batch, plans, and peers.

python -m benchmarks.input [--images=FOLDER] [--parts speed first plan peers]

Makes data sets of few and of many classes, of photos or of synthetic ones, and reads them with
train_batches and with bare sequential reads of the same decoding, in turns; then seconds until the
first batch, batch plans alone, and peers. Everything measured runs in processes of its own; the
files are in the page cache.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.input.child import BATCH, P
from benchmarks.input.data import DataSet, make
from benchmarks.input.parts import Bench
from benchmarks.preprocess.photos import TooLittleSpace
from benchmarks.timing import machine
from tripletmill.cli.arguments import Parser, positive
from tripletmill.errors import UsageError

PARTS = {"speed": Bench.speed, "first": Bench.first, "plan": Bench.plan, "peers": Bench.peers}


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    # Ends the `with` blocks, and so the processes and the folders, as Ctrl+C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with contextlib.ExitStack() as stack:
            folder = flags.folder or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="input-"))
            )
            bench = Bench(flags, folder, data_sets(flags))
            if {*flags.parts} - {"plan"}:
                files = flags.class_files if "peers" in flags.parts else 0
                make(folder, bench.sets, images=flags.images, class_files=files)
            source = flags.images or "synthetic photographs"
            print(f"Batches by offset, {source} ({machine()})")
            for part in flags.parts:
                PARTS[part](bench)
    except (TooLittleSpace, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if bench.failures else 0)


def data_sets(flags: argparse.Namespace) -> list[DataSet]:
    """By side, the largest first, and by classes, so that the last is the peers'."""
    found = [
        DataSet(side, classes, max(images, flags.records // classes))
        for side, images in zip(flags.sides, flags.images_per_class, strict=True)
        for classes in flags.classes
    ]
    return sorted(found, key=lambda data: (-data.side, data.classes))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.input",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def numbers(name: str, default: list[int], text: str) -> None:
        parser.add_argument(name, default=default, help=text, type=positive, nargs="+", metavar="N")

    def number(name: str, default: int, text: str) -> None:
        help_text = f"{text} ({default})"
        parser.add_argument(name, default=default, help=help_text, type=positive, metavar="N")

    add = parser.add_argument
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="all without it")
    add("--images", type=folder, help="a folder of JPEGs, in any folders; synthetic ones without")
    add("--folder", type=Path, help="keep the data sets there, and use them again")
    numbers("--sides", [128, 224], "short sides of the images, pixels (128 224)")
    numbers("--classes", [100, 50_000], "of the data sets of each side (100 50000)")
    numbers("--images_per_class", [4, 2], "at least, for each side (4 2)")
    number("--records", 10_000, "images of a data set, at least")
    number("--read", 12_800, "images of a turn")
    number("--rounds", 5, "turns of each")
    number("--memory", 500, "data sets up to so many MB are read from memory, too")
    number("--class_files", 5000, "peers: classes that have a file of their own")
    numbers("--plan_classes", [100, 50_000, 1_000_000], "of plans alone (100 50000 1000000)")
    number("--plan_images", 50, "of each of these classes")
    add("--plan_seconds", default=2.0, type=float, help="for each kind and shape of batches (2)")
    add("--peers", default=".peers", type=Path, help="folder of their environments (.peers)")
    flags = parser.parse_args(arguments)
    if len(flags.sides) != len(flags.images_per_class):
        parser.error("--images_per_class: a number for each of --sides")
    if min(flags.classes) < P:
        parser.error(f"--classes {min(flags.classes)}: {P} or more, as many as a batch has")
    if min(flags.plan_classes) < P:
        parser.error(f"--plan_classes {min(flags.plan_classes)}: {P} or more")
    if not P <= flags.class_files <= max(flags.classes):
        parser.error(f"--class_files {flags.class_files}: {P} to {max(flags.classes)}")
    if flags.read < 2 * BATCH:
        parser.error(f"--read {flags.read}: {2 * BATCH} or more, two batches")
    if flags.folder:
        flags.folder.mkdir(parents=True, exist_ok=True)
        flags.folder = flags.folder.absolute()
    return flags


def folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: no such folder")
    return Path(text).absolute()


if __name__ == "__main__":
    main()
