"""python -m trainer.report: writes a page that shows what the model of a run does."""

import argparse
import sys
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code, positive

DESCRIPTION = """
Writes one HTML file that needs no other file: metrics with confidence intervals, what the model
finds and what it confuses, and problems of the data, which are likely wrong labels and
near-duplicates. Exit codes: 0; 2 for a mistake in the command line, which is reported in one line;
130 after Ctrl+C.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m trainer.report", description=DESCRIPTION)
    parser.add_argument("--model_dir", metavar="DIR", required=True, help="folder of the run")
    text = "folder of the data set that was embedded"
    parser.add_argument("--data_dir", metavar="DIR", required=True, help=text)
    text = "folder that `python -m pipeline.embed` wrote (MODEL_DIR/embeddings)"
    parser.add_argument("--embeddings", dest="embeddings_dir", metavar="DIR", help=text)
    text = "the page to write (MODEL_DIR/report.html)"
    parser.add_argument("--output", metavar="FILE.html", help=text)
    text = (
        "split whose images are the queries (query, searched in gallery, if the data set has both;"
        " otherwise test)"
    )
    parser.add_argument("--split", metavar="NAME", help=text)
    text = "largest number of wrong labels, and of near-duplicates, to show (24)"
    parser.add_argument("--listed", metavar="N", type=positive, default=24, help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report and returns the exit code. Without arguments, it takes `sys.argv`."""
    flags = _arguments(arguments)
    return exit_code(lambda: _write(flags), path=flags.model_dir)


def _write(flags: argparse.Namespace) -> None:
    from tripletmill.cli.notices import import_tensorflow

    import_tensorflow()
    from trainer.report.report import write_report

    write_report(**vars(flags))


if __name__ == "__main__":
    sys.exit(main())
