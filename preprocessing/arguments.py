"""Command lines without gin: a wrong one is one line, exit code 2."""

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Without argparse's usage text before the error."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits."""
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(2)


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers, 1 or more")
    return int(text)
