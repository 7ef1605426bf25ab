"""python -m trainer.serve: a web page to try a model and its index on."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code
from tripletmill.errors import UsageError

DESCRIPTION = """
Serves a web page on which an image is dropped and its neighbours are seen. Exit codes: 0 after
Ctrl+C; 2 for a mistake in the command line, or a port that is taken, said in one line.
"""


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 to 65535")
    return int(text)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m trainer.serve", description=DESCRIPTION)
    text = "the exported model that the index was made with, or its run"
    parser.add_argument("--model", metavar="DIR", required=True, help=text)
    text = "what `python -m trainer.search build` wrote"
    parser.add_argument("--index", metavar="DIR", required=True, help=text)
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--data", metavar="DIR", help="data set with the pictures of the index")
    text = "in its place: the folder, or list, that was embedded"
    pictures.add_argument("--images", metavar="PATH", help=text)
    text = "address to listen on (127.0.0.1: this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    text = "to listen on (8000); 0: one that is free"
    parser.add_argument("--port", metavar="N", type=_port, default=8000, help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is stopped and returns the exit code; the command line by default."""
    flags = _arguments(arguments)

    def work() -> None:
        try:
            from trainer.serve.server import serve
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise UsageError(f"{error.name} is missing: pip install -e '.[serve]'") from error
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C is how it is meant to end.
            serve(**vars(flags))

    return exit_code(work, path=flags.index)


if __name__ == "__main__":
    # A console that cannot show a name shows it escaped.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = main()
    sys.stdout.flush()
    os._exit(code)  # nothing is left to do, and TensorFlow takes seconds to be taken apart
