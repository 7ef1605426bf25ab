"""Prints what is wrong with a data set, as python -m tripletmill verify does."""

import collections
import sys
import time

from tripletmill.cli.progress import Progress
from tripletmill.formats.index import load_info
from tripletmill.inspection.describe import escaped
from tripletmill.inspection.problem import Problem
from tripletmill.inspection.verify import verify

SHOWN_OF_A_FILE = 20


def verify_command(directory: str, jobs: int | None) -> int:
    """Reads a whole data set and prints its problems.

    Args:
      directory: folder of the data set.
      jobs: number of shards to read at once; None for the number of cores.

    Returns:
      The exit code: 1 if there is a problem, otherwise 0.

    Raises:
      UsageError: there is no data set.
    """
    info = load_info(directory)
    total = sum(info.num_images.values())
    counts: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    # On a terminal, problems and the line that updates must go through one stream, or they mix.
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
