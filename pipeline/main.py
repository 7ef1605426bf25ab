"""Makes a data set of class-grouped TFRecords from labelled images.

  python -m pipeline.main --input=IMAGES --output=DATA [--gin_param='preprocess.short_side = 224']

IMAGES is a folder with one folder per class; a manifest (.csv or .jsonl) with the columns path,
label and, optionally, split; tfrecord:PATTERN for files of tf.Example records; or tfds:NAME. Every
path may be a gs:// path. Options of Apache Beam, such as --runner, are passed on to Beam.
"""

import sys
from collections.abc import Sequence

from pipeline.beam import command

CONFIGURABLES = (
    "pipeline.preprocess.job:preprocess",
    *(f"preprocessing.splits:{name}" for name in ("HashSplits", "SortedSplits", "QueryGallery")),
    *command.INPUTS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns the exit code. Without arguments, it takes `sys.argv`."""
    parser = command.job_parser(
        "pipeline.main", "preprocess", description=__doc__, configurables=CONFIGURABLES
    )
    text = "folder of class folders, manifest (.csv, .jsonl), tfrecord:PATTERN or tfds:NAME"
    parser.add_argument("--input", metavar="IMAGES", help=text)
    text = "first part of the file names (the last part of the output's path)"
    parser.add_argument("--name", metavar="NAME", help=text)
    text = "what to do with exact duplicates: keep, drop or error"
    parser.add_argument("--duplicates", metavar="POLICY", help=text)
    return command.run_job(
        "preprocess",
        parser,
        arguments,
        configurables=CONFIGURABLES,
        required={"preprocess.input": "input", "preprocess.output": "output"},
        defaults=["preprocess.splits = @HashSplits()"],
        output_is="its data set is",
        print_summary="pipeline.preprocess.summary:print_summary",
    )


if __name__ == "__main__":
    sys.exit(main())
