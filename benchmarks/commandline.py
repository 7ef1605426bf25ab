"""Parts of the command lines that several benchmarks share."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tripletmill.cli.arguments import exit_code


def add_peers_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --peers, the folder of the peers' environments."""
    text = "the folder with the environments of `make peers` (.peers)"
    parser.add_argument("--peers", default=Path(".peers"), type=Path, metavar="FOLDER", help=text)


def existing_folder(text: str) -> Path:
    """Returns a flag's value as an absolute path to a folder that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: no such folder")
    return Path(text).absolute()


def run_and_exit(work: Callable[[], int | None], *, folder: Path | None) -> NoReturn:
    """Runs a benchmark and ends the process with its exit code.

    SIGTERM ends the `with` blocks as Ctrl+C does, so that no process and no temporary folder
    outlives the benchmark.

    Args:
      work: the benchmark; it returns its exit code, or None for 0.
      folder: the folder that it writes to, for the message of a system error that names no file.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(exit_code(work, path=str(folder or "")))
