"""Measures the preprocessing job: speed, memory and resuming.

python -m benchmarks.preprocess [--parts=speed,memory,peer,resume,many] [--kinds=small,large]

speed: the job and bare pools that call only Pillow.
memory: the peak memory for several numbers of images.
peer: the job and TensorFlow Datasets.
resume: a job that was killed and is run again.
many: one large job.

The images are synthetic photographs in a temporary folder, which is removed in the end. The small
ones keep their size, so the share of work outside Pillow is largest. Every run is a new process.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.commandline import existing_folder, run_and_exit
from benchmarks.preprocess.parts import Bench
from benchmarks.preprocess.photos import KINDS
from benchmarks.tables import machine
from tripletmill.cli.arguments import Parser, positive

BY_KIND = {"speed": Bench.speed, "memory": Bench.memory, "peer": Bench.peer, "resume": Bench.resume}
PARTS = (*BY_KIND, "many")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    run_and_exit(lambda: measure(flags), folder=flags.folder)


def measure(flags: argparse.Namespace) -> int:
    """Runs the parts; returns the exit code."""
    print(f"Preprocessing ({machine()})")
    with tempfile.TemporaryDirectory(dir=flags.folder, prefix="preprocess-") as folder:
        bench = Bench(flags, Path(folder))
        for part in flags.parts:
            if part == "many":
                bench.many()
                continue
            for kind in flags.kinds:
                BY_KIND[part](bench, KINDS[kind])
    return 1 if bench.rotation.failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.preprocess",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def number(name: str, default: int, text: str) -> None:
        help_text = f"{text} ({default})"
        parser.add_argument(name, default=default, type=positive, metavar="N", help=help_text)

    add = parser.add_argument
    add("--parts", default=list(PARTS), type=some_of(PARTS), help=f"default: {','.join(PARTS)}")
    add("--kinds", default=list(KINDS), type=some_of(KINDS), help="of images: small,large (both)")
    number("--images", 4000, "small images in speed, peer and resume")
    number("--large", 400, "large images in speed, peer and resume")
    text = "numbers of images in memory (500 2000)"
    add("--memory", default=[500, 2000], type=positive, nargs="+", metavar="N", help=text)
    number("--many", 20_000, "images in many; they are small ones")
    add("--links", action="store_true", help="many: hard links, which are exact duplicates")
    number("--rounds", 3, "turns of each contestant in speed, peer and resume")
    text = "the folder for temporary files"
    add("--folder", default=Path(tempfile.gettempdir()), type=existing_folder, help=text)
    return parser.parse_args(arguments)


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns a function that reads a comma-separated list of the given names."""
    known = list(names)

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: choose from {','.join(known)}")
        return chosen

    return read


if __name__ == "__main__":
    main()
