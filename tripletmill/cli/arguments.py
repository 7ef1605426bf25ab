"""Command lines without gin: a wrong one is one line, exit code 2."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from tripletmill.errors import UsageError, one_line


class Parser(argparse.ArgumentParser):
    """Without argparse's usage text before the error."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits."""
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(2)

    # Typed no more than argparse's own.
    def parse_args(self, args=None, namespace=None):
        """The arguments, with `--flag=~/folder` as any shell has it without the flag."""
        given = sys.argv[1:] if args is None else args
        return super().parse_args([at_home(each) for each in given], namespace)


def at_home(argument: str) -> str:
    """`--flag=~/folder` with the home folder in it: bash leaves it as it is, zsh does not."""
    flag, equals, value = argument.partition("=")
    if flag.startswith("--") and equals and value.startswith("~"):
        return f"{flag}={os.path.expanduser(value)}"
    return argument


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers, 1 or more")
    return int(text)


def exit_code(work: Callable[[], int | None], *, path: str) -> int:
    """Does the work of a command and returns its exit code.

    Args:
      work: returns its own code, or None for 0.
      path: named where an error of the system's names no file.

    Returns:
      2 for a mistake of the user, said in one line; 130 after Ctrl+C; 1 where nobody reads on.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or path}: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 2
