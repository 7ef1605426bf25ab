"""Embeds images with an exported model, into Parquet shards.

  python -m pipeline.embed --model_dir=RUN --data_dir=DATA --output=EMBEDDINGS [--splits=test]
  python -m pipeline.embed --model_dir=RUN --images=IMAGES --output=EMBEDDINGS

RUN is the folder of the run whose model was exported, or of the export. DATA is a data set that
pipeline.main made. IMAGES is a folder with one folder per class; a folder of images; a manifest
(.csv or .jsonl) with the columns path and, optionally, label; tfrecord:PATTERN; or tfds:NAME. Every
path may be a gs:// path. Options of Apache Beam, such as --runner, are passed on to Beam.
"""

import argparse
import sys
from collections.abc import Sequence

from pipeline.beam import command
from tripletmill.cli.arguments import exit_code
from tripletmill.cli.commandline import flag_bindings, parse_gin

CONFIGURABLES = ("pipeline.embedding.job:embed", *command.INPUTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns the exit code; the arguments are those of the command line."""
    parser = command.job_parser(
        "pipeline.embed", "embed", description=__doc__, configurables=CONFIGURABLES
    )
    # `dest` is the gin parameter that a flag sets.
    text = "folder of the run whose model was exported, or of the export"
    parser.add_argument("--model_dir", dest="model", metavar="DIR", help=text)
    text = "folder of a finished data set"
    parser.add_argument("--data_dir", dest="data", metavar="DIR", help=text)
    text = "splits of the data set, such as val,test (all)"
    parser.add_argument("--splits", metavar="NAMES", type=_names, help=text)
    text = "images in place of a data set: folder, manifest, tfrecord:PATTERN or tfds:NAME"
    parser.add_argument("--images", dest="input", metavar="PATH", help=text)
    flags, beam_flags = parser.parse_known_args(arguments)
    return exit_code(lambda: _embed(flags, beam_flags))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _embed(flags: argparse.Namespace, beam_flags: list[str]) -> None:
    parse_gin(
        CONFIGURABLES,
        files=flags.gin_file,
        bindings=flag_bindings("embed", flags),
        required={"embed.model": "model_dir", "embed.output": "output"},
        defaults=command.input_bindings("embed"),
    )
    outcome = command.run_job("embed", beam_flags, output_is="its embeddings are")
    if outcome is not None:
        from pipeline.embedding.summary import print_summary

        print_summary(outcome)


if __name__ == "__main__":
    sys.exit(main())
