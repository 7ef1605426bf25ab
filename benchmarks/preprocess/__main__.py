"""The preprocessing job: speed, memory and resuming, against a bare pool and a peer.

python -m benchmarks.preprocess [--parts=speed,memory,peer,resume,many] [--kinds=small,large]

On synthetic photographs, made in a temporary folder, which is removed: small ones that keep their
size, where everything but Pillow weighs most, and large ones. Every run is a process of its own.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.preprocess.parts import Bench
from benchmarks.preprocess.photos import KINDS, TooLittleSpace
from benchmarks.timing import machine
from tripletmill.cli.arguments import Parser, positive

BY_KIND = {"speed": Bench.speed, "memory": Bench.memory, "peer": Bench.peer, "resume": Bench.resume}
PARTS = (*BY_KIND, "many")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    # Ends the `with` blocks, and so the commands and the folders, as Ctrl+C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"Preprocessing ({machine()})")
    try:
        with tempfile.TemporaryDirectory(dir=flags.folder, prefix="preprocess-") as folder:
            bench = Bench(flags, Path(folder))
            for part in flags.parts:
                if part == "many":
                    bench.many()
                    continue
                for kind in flags.kinds:
                    BY_KIND[part](bench, KINDS[kind])
    except TooLittleSpace as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if bench.failures else 0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.preprocess")
    add = parser.add_argument
    add("--parts", default=list(PARTS), type=some_of(PARTS), help=f"of {','.join(PARTS)}")
    add("--kinds", default=list(KINDS), type=some_of(KINDS), help="of images, of small,large")
    add("--images", default=4000, type=positive, help="small ones, of speed, peer and resume")
    add("--large", default=400, type=positive, help="large ones, of speed, peer and resume")
    add("--memory", default=[500, 2000], type=positive, nargs="+", help="images, several sizes")
    add("--many", default=20_000, type=positive, help="images of the part many, small ones")
    add("--links", action="store_true", help="many: as hard links, which are exact duplicates")
    add("--rounds", default=3, type=positive, help="turns of each in speed, peer and resume")
    add("--folder", default=Path(tempfile.gettempdir()), type=folder, help="for temporary files")
    return parser.parse_args(arguments)


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them."""
    known = list(names)

    def read(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: of {','.join(known)}")
        return found

    return read


def folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: no such folder")
    return Path(text).absolute()


if __name__ == "__main__":
    main()
