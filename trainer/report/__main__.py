"""python -m trainer.report: writes a page to look at a run by."""

import argparse
import sys
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code, positive

DESCRIPTION = """
Writes one HTML file that needs no other: metrics with intervals, what the model finds and what it
confuses, and problems of the data, which are likely wrong labels and near-duplicates. Exit codes:
0; 2 for a mistake in the command line, said in one line; 130 after Ctrl+C.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m trainer.report", description=DESCRIPTION)
    parser.add_argument("--model_dir", metavar="DIR", required=True, help="folder of the run")
    parser.add_argument("--data_dir", metavar="DIR", required=True, help="data set, as embedded")
    text = "what `python -m pipeline.embed` wrote (MODEL_DIR/embeddings)"
    parser.add_argument("--embeddings", metavar="DIR", help=text)
    parser.add_argument("--output", metavar="FILE.html", help="the page (MODEL_DIR/report.html)")
    text = "whose images are queries (query, against gallery, where there are both, else test)"
    parser.add_argument("--split", metavar="NAME", help=text)
    text = "wrong labels and near-duplicates shown, at most of each (24)"
    parser.add_argument("--listed", metavar="N", type=positive, default=24, help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report and returns the exit code; the command line by default."""
    flags = _arguments(arguments)
    return exit_code(lambda: _write(flags), path=flags.model_dir)


def _write(flags: argparse.Namespace) -> None:
    from tripletmill.cli.notices import import_tensorflow

    import_tensorflow()
    from trainer.report.report import write_report

    write_report(
        model_dir=flags.model_dir,
        data_dir=flags.data_dir,
        embeddings_dir=flags.embeddings,
        output=flags.output,
        split=flags.split,
        listed=flags.listed,
    )


if __name__ == "__main__":
    # A console that cannot show a name shows it escaped.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
