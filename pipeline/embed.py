"""Embeds images with an exported model, into Parquet shards.

  python -m pipeline.embed --model=RUN --data=DATA --output=EMBEDDINGS [--splits=test]
  python -m pipeline.embed --model=RUN --input=IMAGES --output=EMBEDDINGS

RUN is the run whose model was exported, or the export itself. DATA is a data set that
pipeline.main made. IMAGES is a folder with one folder a class, a folder of images, a list (.csv or
.jsonl) with path and, if known, label, tfrecord:PATTERN, or tfds:NAME. All may lie at gs://.
Options of Apache Beam, such as --runner or --direct_num_workers, pass through.
"""

import shlex

import gin
from absl import flags

from pipeline import runners
from pipeline.embedding import Outcome, embed
from preprocessing import commandline, storage
from preprocessing.index import REJECTED_FILE
from preprocessing.progress import duration
from preprocessing.sources import FolderInput, ManifestInput, RecordsInput, TfdsInput

flags.DEFINE_string("model", None, "Folder of an exported model, or of its run")
flags.DEFINE_string("data", None, "Folder of a data set")
flags.DEFINE_list("splits", None, "Splits of the data set, such as val,test; else all")
flags.DEFINE_string(
    "input", None, "In place of --data: folder, list (.csv, .jsonl), tfrecord:PATTERN, tfds:NAME"
)
flags.DEFINE_string("tfds_dir", None, "Where the data set of tfds:NAME has been prepared")
flags.DEFINE_string("output", None, "Folder of the embeddings")
flags.DEFINE_bool("overwrite", False, "Replace embeddings that lie in the output")

DEFAULTS = [
    "embed.folder = @FolderInput()",
    "embed.manifest = @ManifestInput()",
    "embed.records = @RecordsInput()",
    "embed.tfds = @TfdsInput()",
]


def main(beam_flags: list[str]) -> None:
    names = ("model", "data", "splits", "input", "tfds_dir", "output", "overwrite")
    commandline.parse_gin(
        (embed, FolderInput, ManifestInput, RecordsInput, TfdsInput),
        commandline.bindings("embed", *names),
        required={"embed.model": "model", "embed.output": "output"},
        defaults=DEFAULTS,
    )
    runner, options = runners.runner_and_options(beam_flags)
    runners.stop_at_once_on_interrupt(runner)
    with runners.clean_errors():
        outcome = gin.get_configurable("embed")(runner=runner, options=options)
    if outcome is None:
        print(runners.instead_of_output(options, "its embeddings are"))
    else:
        _print_summary(outcome)


def _print_summary(outcome: Outcome) -> None:
    info = outcome.info
    print(f"\nembeddings in {info.directory}")
    print(f"  {info.num_rows:,} of {info.dim} numbers, in {len(info.shards):,} shards")
    if outcome.images_embedded:
        rate = outcome.images_embedded / outcome.seconds
        took = f"{duration(outcome.seconds)}, {rate:,.{0 if rate > 10 else 2}f} images/s"
        print(f"  {outcome.images_embedded:,} images embedded now, in {took}")
    if outcome.images_reused:
        print(f"  {outcome.images_reused:,} images lay in finished shards")
    rejected = storage.join(info.directory, REJECTED_FILE)
    if info.num_rejected:
        print(f"  left out: {info.num_rejected:,} files, each with its reason in {rejected}")
    else:
        print("  left out: nothing")
    if outcome.warning:
        print(f"  warning: {outcome.warning}")
    directory = info.directory.rstrip("/")
    parent, _, name = directory.rpartition("/")
    index = name.replace("embeddings", "index")
    if index == name:
        index = f"{name}-index"
    if not storage.is_bucket(directory):  # where no index can be
        index = storage.join(parent, index)
    print(
        f"next: python -m trainer.search build --embeddings={shlex.quote(directory)}"
        f" --index={shlex.quote(index)}"
    )


if __name__ == "__main__":
    commandline.run(main, description=__doc__, other_flags=True)
