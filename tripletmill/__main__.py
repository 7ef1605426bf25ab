"""python -m tripletmill verify DIR [--jobs=N], or describe DIR."""

import argparse
import sys
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code, positive
from tripletmill.inspection.describe import describe
from tripletmill.inspection.verify_command import verify_command

DESCRIPTION = """
Examines a data set. Exit codes: 0; 1 if verify finds a problem; 2 for a mistake in the command
line or a folder without a data set, which is reported in one line; 130 after Ctrl+C.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m tripletmill", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="verify|describe")
    for name, text in {
        "verify": "read the whole data set and report each problem and where it is",
        "describe": "print classes, images, sizes, what was left out, and settings",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        where = "folder of the data set; may be a gs:// path"
        command.add_argument("directory", metavar="DIR", help=where)
        if name == "verify":
            jobs = "number of shards to read at once (number of cores)"
            command.add_argument("--jobs", metavar="N", type=positive, help=jobs)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit code. Without arguments, it takes `sys.argv`."""
    parsed = _arguments(arguments)
    return exit_code(lambda: _run(parsed), path=parsed.directory)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.command == "verify":
        return verify_command(parsed.directory, parsed.jobs)
    for line in describe(parsed.directory):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
