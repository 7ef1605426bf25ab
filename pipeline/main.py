"""Makes a data set of class-grouped TFRecords from labelled images.

  python -m pipeline.main --input=IMAGES --output=DATA [--gin_param='preprocess.short_side = 224']

IMAGES is a folder with one folder a class, a list (.csv or .jsonl) with path, label and, if wanted,
split, tfrecord:PATTERN for files of tf.Example records, or tfds:NAME. All may lie at gs://. Options
of Apache Beam, such as --runner or --direct_num_workers, pass through.
"""

import gin
from absl import flags

from pipeline.beam import runners
from pipeline.preprocess import summary
from pipeline.preprocess.job import preprocess
from preprocessing.sources.folders import FolderInput
from preprocessing.sources.manifests import ManifestInput
from preprocessing.sources.tfds import TfdsInput
from preprocessing.sources.tfrecords import RecordsInput
from preprocessing.splits import HashSplits, QueryGallery, SortedSplits
from tripletmill.cli import commandline

flags.DEFINE_string(
    "input", None, "Folder of class folders, a list (.csv, .jsonl), tfrecord:PATTERN, tfds:NAME"
)
flags.DEFINE_string("output", None, "Folder of the data set")
flags.DEFINE_string("name", None, "First part of the file names; else the output's last part")
flags.DEFINE_string("tfds_dir", None, "Where the data set of tfds:NAME has been prepared")
flags.DEFINE_string("duplicates", None, "What becomes of exact duplicates: keep, drop or error")
flags.DEFINE_bool("overwrite", False, "Replace a data set that lies in the output")

DEFAULTS = [
    "preprocess.splits = @HashSplits()",
    "preprocess.folder = @FolderInput()",
    "preprocess.manifest = @ManifestInput()",
    "preprocess.records = @RecordsInput()",
    "preprocess.tfds = @TfdsInput()",
]


def main(beam_flags: list[str]) -> None:
    set_by_flag = commandline.bindings(
        "preprocess", "input", "output", "name", "tfds_dir", "duplicates", "overwrite"
    )
    required = {f"preprocess.{flag}": flag for flag in ("input", "output")}
    inputs = (FolderInput, ManifestInput, RecordsInput, TfdsInput)
    configurables = (preprocess, HashSplits, SortedSplits, QueryGallery, *inputs)
    commandline.parse_gin(configurables, set_by_flag, required=required, defaults=DEFAULTS)
    runner, options = runners.runner_and_options(beam_flags)
    runners.stop_at_once_on_interrupt(runner)
    with runners.clean_errors():
        outcome = gin.get_configurable("preprocess")(runner=runner, options=options)
    if outcome is None:
        print(runners.instead_of_output(options))
    else:
        summary.print_summary(outcome)


if __name__ == "__main__":
    commandline.run(main, description=__doc__, other_flags=True)
