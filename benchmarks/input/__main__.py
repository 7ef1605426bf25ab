"""Measures the input pipeline: batches of P classes x K images, read by offset.

python -m benchmarks.input [--images=FOLDER] [--parts speed first plan peers]

The benchmark first makes data sets with few and with many classes, from photos or synthetic images.

speed: train_batches and bare sequential reads with the same decoding, in turns.
first: seconds from the index on disk to the first batch.
plan: batch plans alone, without images.
peers: other libraries' ways to make such batches.

Everything that is measured runs in its own process. The files are in the page cache.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commandline import add_peers_flag, existing_folder, run_and_exit
from benchmarks.input.child import BATCH, P
from benchmarks.input.data import DataSet, make
from benchmarks.input.parts import Bench
from benchmarks.tables import machine
from tripletmill.cli.arguments import Parser, positive

PARTS = {"speed": Bench.speed, "first": Bench.first, "plan": Bench.plan, "peers": Bench.peers}


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    run_and_exit(lambda: measure(flags), folder=flags.folder)


def measure(flags: argparse.Namespace) -> int:
    """Makes the data sets and runs the parts; returns the exit code."""
    with contextlib.ExitStack() as stack:
        folder = flags.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="input-"))
        )
        bench = Bench(flags, folder, data_sets(flags))
        if {*flags.parts} - {"plan"}:
            class_files = flags.class_files if "peers" in flags.parts else 0
            make(folder, bench.sets, images=flags.images, class_files=class_files)
        source = flags.images or "synthetic photographs"
        print(f"Batches by offset, {source} ({machine()})")
        for part in flags.parts:
            PARTS[part](bench)
    return 1 if bench.rotation.failures else 0


def data_sets(flags: argparse.Namespace) -> list[DataSet]:
    """Returns the data sets: larger images first, then fewer classes first.

    The last one is the data set for the peers.
    """
    sets = [
        DataSet(side, classes, max(images, flags.records // classes))
        for side, images in zip(flags.sides, flags.images_per_class, strict=True)
        for classes in flags.classes
    ]
    return sorted(sets, key=lambda data: (-data.side, data.classes))


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
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="default: all")
    text = "a folder with JPEGs, at any depth; default: synthetic images"
    add("--images", type=existing_folder, metavar="FOLDER", help=text)
    text = "keep the data sets in this folder, and use them again"
    add("--folder", type=Path, metavar="FOLDER", help=text)
    numbers("--sides", [128, 224], "short sides of the images in pixels (128 224)")
    numbers("--classes", [100, 50_000], "classes of the data sets, for each side (100 50000)")
    numbers("--images_per_class", [4, 2], "images of a class at least, one number per side (4 2)")
    number("--records", 10_000, "images in a data set at least")
    number("--read", 12_800, "images that are read in a turn")
    number("--rounds", 5, "turns of each contestant")
    number("--memory", 500, "largest data set, in MB, that is read from memory too")
    number("--class_files", 5000, "peers: classes with their own file")
    numbers(
        "--plan_classes", [100, 50_000, 1_000_000], "classes of the part plan (100 50000 1000000)"
    )
    number("--plan_images", 50, "images of each class in the part plan")
    add("--plan_seconds", default=2.0, type=float, help="part plan: time per kind and shape (2)")
    add_peers_flag(parser)
    flags = parser.parse_args(arguments)
    if len(flags.sides) != len(flags.images_per_class):
        parser.error("--images_per_class: give one number for each of --sides")
    if min(flags.classes) < P:
        parser.error(f"--classes {min(flags.classes)}: a batch needs {P} classes or more")
    if min(flags.plan_classes) < P:
        parser.error(f"--plan_classes {min(flags.plan_classes)}: a batch needs {P} classes or more")
    if not P <= flags.class_files <= max(flags.classes):
        limits = f"{P} to {max(flags.classes)}"
        parser.error(f"--class_files {flags.class_files}: must be from {limits}")
    if flags.read < 2 * BATCH:
        parser.error(f"--read {flags.read}: must be {2 * BATCH} or more, which are two batches")
    if flags.folder:
        flags.folder.mkdir(parents=True, exist_ok=True)
        flags.folder = flags.folder.absolute()
    return flags


if __name__ == "__main__":
    main()
