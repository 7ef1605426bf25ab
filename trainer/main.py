"""Trains, evaluates and exports image-similarity models.

  python -m trainer.main --gin_file=gin/demo.gin
  python -m trainer.main --gin_file=gin/small_conv.gin --data_dir=DATA --model_dir=RUN
  python -m trainer.main --mode=evaluate --model_dir=RUN
  python -m trainer.main --mode=export --model_dir=RUN

Flags win over --gin_param, that over --gin_file. Training goes on where it stopped, and ends with
an evaluation on the test split.
"""

import shlex

from absl import flags

from tripletmill.cli import commandline, notices

flags.DEFINE_enum("mode", "train", ["train", "evaluate", "export"], "What to do")
flags.DEFINE_string("data_dir", None, "Folder of a finished data set")
flags.DEFINE_string("model_dir", None, "Folder of the run")

FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    # Imported late: --help and a mistyped flag need no TensorFlow.
    notices.import_tensorflow()
    import gin

    from trainer import config
    from trainer.distributed import lost_workers
    from trainer.evaluation.evaluate import check_evaluation
    from trainer.runs import stop_signals

    called = {
        "train": (config.train, config.evaluate),
        "evaluate": (config.evaluate,),
        "export": (config.export,),
    }
    model_dir = config.load(FLAGS.gin_file, FLAGS.data_dir, FLAGS.model_dir, called[FLAGS.mode])
    if FLAGS.mode == "export":
        gin.get_configurable("export")(configuration=config.common())
        return
    finished = True
    configuration = f"--mode={FLAGS.mode}\n{config.common()}"
    with lost_workers.ended_if_lost():
        if FLAGS.mode == "train":
            check_evaluation(**gin.get_bindings("evaluate"))
            finished = gin.get_configurable("train")(
                configuration=configuration,
                before_restoring=lambda: config.show_changes(model_dir),
                on_ready=lambda: config.save(model_dir),
            )
        if finished:
            command = f"python -m trainer.main --mode=evaluate --model_dir={shlex.quote(model_dir)}"
            stopped = f"stopped before the evaluation had ended; to do it again: {command}"
            with stop_signals.printing_on_stop(stopped):
                gin.get_configurable("evaluate")(configuration=configuration)


if __name__ == "__main__":
    commandline.run(main, description=__doc__)
