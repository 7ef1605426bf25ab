"""python -m trainer.serve: a web page on which to try a model and its index."""

import argparse
import os
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code
from tripletmill.errors import UsageError

DESCRIPTION = """
Serves a web page that shows the nearest neighbours of an image that is dropped on it. Exit codes:
0 after Ctrl+C; 2 for a mistake in the command line or a port that is taken, reported in one line.
"""


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 to 65535")
    return int(text)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m trainer.serve", description=DESCRIPTION)
    text = "folder of the export whose embeddings the index has, or of its run"
    parser.add_argument("--model_dir", dest="model", metavar="DIR", required=True, help=text)
    text = "folder that `python -m trainer.search build` wrote"
    parser.add_argument("--index_dir", dest="index", metavar="DIR", required=True, help=text)
    pictures = parser.add_mutually_exclusive_group(required=True)
    text = "data set that has the pictures"
    pictures.add_argument("--data_dir", dest="data", metavar="DIR", help=text)
    text = "folder or manifest that was embedded, which has the pictures, in place of a data set"
    pictures.add_argument("--images", metavar="PATH", help=text)
    text = "address on which to listen (127.0.0.1: only this machine can reach it)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    text = "port on which to listen, or 0 for a free port (8000)"
    parser.add_argument("--port", metavar="N", type=_port, default=8000, help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is stopped and returns the exit code."""
    flags = _arguments(arguments)
    return exit_code(lambda: _serve(flags), path=flags.index)


def _serve(flags: argparse.Namespace) -> None:
    try:
        from trainer.serve.server import serve

        serve(**vars(flags))
    except KeyboardInterrupt:
        return  # Ctrl+C is the way to stop a server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(f"{error.name} is missing: pip install -e '.[serve]'") from error


if __name__ == "__main__":
    os._exit(main())  # nothing is left to do, and TensorFlow takes seconds to shut down
