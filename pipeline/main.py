"""Makes a data set of class-grouped TFRecords from labelled images.

  python -m pipeline.main --input=IMAGES --output=DATA [--gin_param='preprocess.short_side = 224']

IMAGES is a folder with one folder a class, or a CSV file with the columns path, label and, if
wanted, split. Options of Apache Beam, such as --runner or --direct_num_workers, pass through.
"""

import gin
from absl import flags

from pipeline import runners, summary
from pipeline.preprocess import preprocess
from preprocessing import commandline
from preprocessing.plan import HashSplits, SortedSplits

flags.DEFINE_string("input", None, "Folder of class folders, or a CSV file")
flags.DEFINE_string("output", None, "Folder of the data set")
flags.DEFINE_string("name", None, "First part of the file names; else the output's last part")
flags.DEFINE_bool("overwrite", False, "Replace a data set that lies in the output")

DEFAULTS = ["preprocess.splits = @HashSplits()"]


def main(beam_flags: list[str]) -> None:
    set_by_flag = commandline.bindings("preprocess", "input", "output", "name", "overwrite")
    required = {f"preprocess.{flag}": flag for flag in ("input", "output")}
    configurables = (preprocess, HashSplits, SortedSplits)
    commandline.parse_gin(configurables, set_by_flag, required=required, defaults=DEFAULTS)
    runner, options = runners.runner_and_options(beam_flags)
    runners.stop_at_once_on_interrupt()
    with runners.clean_errors():
        info = gin.get_configurable("preprocess")(runner=runner, options=options)
    summary.print_summary(info)


if __name__ == "__main__":
    commandline.run(main, description=__doc__, other_flags=True)
