"""Trains, evaluates and exports image-similarity models.

  python -m trainer.main --gin_file=gin/demo.gin
  python -m trainer.main --gin_file=gin/small_conv.gin --data_dir=DATA --model_dir=RUN
  python -m trainer.main --mode=evaluate --model_dir=RUN
  python -m trainer.main --mode=export --model_dir=RUN

Other flags win over --gin_param, and --gin_param wins over --gin_file. Training continues from the
last checkpoint of the run, and ends with an evaluation on the test split.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from trainer.configurables import CALLED, CONFIGURABLES, SET_BY_PROGRAM
from tripletmill.cli import notices
from tripletmill.cli.arguments import exit_code
from tripletmill.cli.commandline import GinParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what --mode says and returns the exit code. Without arguments, it takes `sys.argv`."""
    parser = GinParser("python -m trainer.main", __doc__, CONFIGURABLES, SET_BY_PROGRAM)
    parser.add_argument("--mode", choices=[*CALLED], default="train", help="what to do (train)")
    parser.add_argument("--data_dir", metavar="DIR", help="folder of a finished data set")
    parser.add_argument("--model_dir", metavar="DIR", help="folder of the run")
    flags = parser.parse_args(arguments)
    return exit_code(lambda: _run(flags))


def _run(flags: argparse.Namespace) -> None:
    # Imported late, because --help and a mistyped flag need no TensorFlow.
    notices.import_tensorflow()
    import gin

    from trainer import config
    from trainer.distributed import lost_workers
    from trainer.evaluation.evaluate import check_evaluation
    from trainer.runs import stop_signals
    from trainer.runs.folder import RunConfig
    from trainer.training.train import train

    model_dir = config.load(flags)
    if flags.mode == "export":
        gin.get_configurable("export")(configuration=config.common())
        return
    finished = True
    configuration = f"--mode={flags.mode}\n{config.common()}"
    with lost_workers.ended_if_lost():
        if flags.mode == "train":
            check_evaluation(**gin.get_bindings("evaluate"))
            run_config = RunConfig(text=gin.config_str(), shared=configuration)
            finished = train(gin.get_configurable("train")(configuration=run_config))
        if finished:
            command = f"python -m trainer.main --mode=evaluate --model_dir={shlex.quote(model_dir)}"
            stopped = f"stopped before the evaluation had ended; to do it again: {command}"
            with stop_signals.printing_on_stop(stopped):
                gin.get_configurable("evaluate")(configuration=configuration)


if __name__ == "__main__":
    sys.exit(main())
