"""Embeds images with an exported model, into Parquet shards.

  python -m pipeline.embed --model_dir=RUN --data_dir=DATA --output=EMBEDDINGS [--splits=test]
  python -m pipeline.embed --model_dir=RUN --images=IMAGES --output=EMBEDDINGS

RUN is the folder of the run whose model was exported, or of the export. DATA is a data set that
pipeline.main made. IMAGES is a folder with one folder per class; a folder of images; a manifest
(.csv or .jsonl) with the columns path and, optionally, label; tfrecord:PATTERN; or tfds:NAME. Every
path may be a gs:// path. Options of Apache Beam, such as --runner, are passed on to Beam.
"""

import sys
from collections.abc import Sequence

from pipeline.beam import command

CONFIGURABLES = ("pipeline.embedding.job:embed", *command.INPUTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns the exit code. Without arguments, it takes `sys.argv`."""
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
    return command.run_job(
        "embed",
        parser,
        arguments,
        configurables=CONFIGURABLES,
        required={"embed.model": "model_dir", "embed.output": "output"},
        output_is="its embeddings are",
        print_summary="pipeline.embedding.summary:print_summary",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
