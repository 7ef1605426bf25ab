"""python -m tripletmill verify DIR [--jobs=N], or describe DIR."""

import argparse
import collections
import sys
import time
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code, positive
from tripletmill.cli.progress import Progress
from tripletmill.formats.index import load_info
from tripletmill.inspection.describe import describe, escaped
from tripletmill.inspection.problem import Problem
from tripletmill.inspection.verify import verify

SHOWN_OF_A_FILE = 20
DESCRIPTION = """
Looks into a data set. Exit codes: 0; 1 where verify finds something wrong; 2 for a mistake in the
command line or a folder without a data set, said in one line; 130 after Ctrl+C.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m tripletmill", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="verify|describe")
    for name, text in {
        "verify": "reads everything back and says what is wrong, and where",
        "describe": "prints classes, images, sizes, what was left out, and settings",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", metavar="DIR", help="of the data set, or gs://...")
        if name == "verify":
            jobs = "shards read at once; by default the number of cores"
            command.add_argument("--jobs", metavar="N", type=positive, help=jobs)
    return parser.parse_args(arguments)


def _verify(directory: str, jobs: int | None) -> int:
    """Prints what is wrong, and returns the exit code."""
    info = load_info(directory)
    total = sum(info.num_images.values())
    counts: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    # Where both are one terminal, the line that updates and those that stay must not mix.
    terminal = sys.stdout.isatty()
    with Progress(sys.stdout if terminal else sys.stderr) as progress:

        def update(images: int) -> None:
            rate = images / max(time.monotonic() - started, 1e-9)
            progress.update(f"read {images:,} of {total:,} images, {rate:,.0f} a second")

        for problem in verify(directory, jobs=jobs, on_progress=update):
            file = "" if problem.is_remark else problem.file
            counts[file] += 1
            if counts[file] <= SHOWN_OF_A_FILE:
                (progress.line if terminal else print)(_line(problem))
    del counts[""]
    for file, count in counts.items():
        if count > SHOWN_OF_A_FILE:
            print(escaped(f"{file}: {count - SHOWN_OF_A_FILE:,} more problems"))
    if counts:
        print(f"{counts.total():,} problem{'s' * (counts.total() > 1)}")
        return 1
    shards = sum(info.num_shards.values())
    print(f"{total:,} images in {shards:,} shards: all right")
    return 0


def _line(problem: Problem) -> str:
    parts = ["remark" if problem.is_remark else "", problem.file, problem.where, problem.message]
    return escaped(": ".join(filter(None, parts)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit code; the command line by default."""
    parsed = _arguments(arguments)
    return exit_code(lambda: _run(parsed), path=parsed.directory)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.command == "verify":
        return _verify(parsed.directory, parsed.jobs)
    for line in describe(parsed.directory):
        print(line)
    return 0


if __name__ == "__main__":
    # A console that cannot show a name shows it escaped.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
