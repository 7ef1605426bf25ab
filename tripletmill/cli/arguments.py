"""What all command lines share: how they are parsed, how they look, and how they end."""

import argparse
import difflib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags
from absl.flags import argparse_flags

from tripletmill.errors import UsageError, one_line


class Parser(argparse_flags.ArgumentParser):
    """A parser that reports a wrong command line in one line, and exits with code 2.

    It is absl's parser for programs that also have subcommands. `--flagfile=FILE` reads further
    flags from a file, one flag a line. Flags that other packages define with absl are not accepted.
    A flag must be spelled in full, because a short form could also be a flag of Apache Beam.

    Args:
      prog: how the program is started, such as "python -m trainer.report".
      passes_on: whether `parse_known_args` returns unknown arguments; otherwise they are an error.
      options: all other options of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str | None = None, *, passes_on: bool = False, **options: Any) -> None:
        as_written = argparse.RawDescriptionHelpFormatter
        options = {"allow_abbrev": False, "formatter_class": as_written, **options}
        # absl would add two more flags for help.
        super().__init__(
            prog=prog, add_help=False, inherited_absl_flags=flags.FlagValues(), **options
        )
        self.add_argument("-h", "--help", action="help", help="show this text and exit")
        self.description = self.description and self.description.strip()
        self._passes_on = passes_on

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits."""
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(2)

    # The types are those of argparse, which gives none here.
    def parse_known_args(self, args=None, namespace=None):
        """Returns the parsed arguments, and the unknown ones if the parser passes them on.

        `~` at the start of a flag's value becomes the home folder.
        """
        given = [at_home(argument) for argument in (sys.argv[1:] if args is None else args)]
        try:
            parsed, unknown = super().parse_known_args(given, namespace)
        except flags.Error as error:
            self.error(one_line(error).removeprefix("ERROR:: "))
        if unknown and not self._passes_on:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown[0])}")
        return parsed, unknown

    def _hint(self, unknown: str) -> str:
        """Returns the end of a message: the flag that an unknown argument likely stands for."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        given = unknown.partition("=")[0]
        longer = [flag for flag in flags if len(given) > 2 and flag.startswith(given)]
        likely = longer or difflib.get_close_matches(given, flags, n=1)
        return f" (did you mean {likely[0]}?)" if likely else ""


def at_home(argument: str) -> str:
    """Puts the home folder in place of `~` in `--flag=~/folder`, which bash leaves as it is."""
    flag, equals, value = argument.partition("=")
    if flag.startswith("--") and equals and value.startswith("~"):
        return f"{flag}={os.path.expanduser(value)}"
    return argument


def positive(text: str) -> int:
    """Parses a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers, 1 or more")
    return int(text)


def exit_code(work: Callable[[], int | None], *, path: str | None = None) -> int:
    """Does the work of a program and returns the exit code of the program.

    Exceptions that are no mistake of the user are defects, and keep their traceback.

    Args:
      work: returns its own exit code, or None for 0.
      path: the file or folder to name in the message if an OSError names no file.

    Returns:
      The code of `work`; 2 for a mistake of the user, which is reported in one line; 130 after
      Ctrl+C; 1 if the reader of standard output has closed the pipe.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A console that cannot show a character shows it escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        message = one_line(error)
    except OSError as error:
        message = _of_system(error, path)
        if not message:
            raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


def _of_system(error: OSError, path: str | None) -> str:
    """Returns what an error of the operating system says; "" for any other OSError."""
    if error.strerror is None:
        # gin raises a copy of an error that keeps the text, but neither strerror nor filename.
        text = one_line(error)
        return text.partition("] ")[2] if text.startswith("[Errno ") else ""
    place = path if error.filename is None else os.fsdecode(error.filename)
    return f"{place}: {error.strerror}" if place else error.strerror
