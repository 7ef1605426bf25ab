"""Saving and restoring a run: all state that a training step depends on, and the best model."""

import glob
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer.runs.write_errors import GO_ON
from trainer.workarounds import saved_variables
from tripletmill.errors import UsageError, first_line

_VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"
LATEST, BEST = "checkpoints", "best"
_SOLUTION = "use the configuration that it was made with, or choose another folder"
DIVERGED = (
    "(the model has diverged); what was saved before is kept; lower the learning rate, or set"
    " train.clip_norm"
)


class MisfitError(UsageError):
    """A checkpoint does not fit the configuration, since it was made with another one."""


class Checkpoints:
    """Checkpoints of a run under model_dir.

    A checkpoint holds every variable of the model, including the state of random layers, so that a
    resumed run continues as if it had never stopped. A checkpoint holds no state of the input
    pipeline, because the batches follow from the step.

    Args:
      model_dir: folder of the run.
      model: a built model.
      optimizer_variables: variables of the optimizers, empty to restore only the model.
      averages: moving averages of the model's trainable variables, in the order of these; empty
        for a run without averages, or to restore only the model.
      keep: how many of the latest checkpoints are kept.
      writes: whether this process writes. Of several workers only one does.

    Attributes:
      model_dir: folder of the run.
      step: scalar variable, the step of the newest checkpoint that was saved or restored.
      evaluated_step: scalar variable, the last step that was evaluated.
      centres: [C, D] int8, the class centres for hard batches; [0, 0] if there are none.
    """

    def __init__(
        self,
        model_dir: str,
        model: keras.Model,
        optimizer_variables: Sequence[keras.Variable] = (),
        averages: Sequence[tf.Variable] = (),
        *,
        keep: int = 2,
        writes: bool = True,
    ) -> None:
        self.model_dir, self._model = model_dir, model
        self._writes, self._swept = writes, False
        self.step, self.evaluated_step, self._best_step = (
            tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(3)
        )
        self._best_metric = tf.Variable(-np.inf, dtype=tf.float64, trainable=False)
        # The shape is open, because a checkpoint with centres is restored before any are computed.
        self.centres = tf.Variable(
            np.zeros([0, 0], np.int8), trainable=False, shape=[None, None], dtype=tf.int8
        )
        weights = saved_variables(model)
        self._checked = [v for v in (*weights, *averages) if v.dtype.is_floating]
        trainable = model.trainable_variables
        # Part of a checkpoint -> the name and the variable of each of its entries, in order.
        self._parts: dict[str, list[tuple[str, tf.Variable]]] = {
            "model": [(v.path, v.value) for v in model.variables],
            "optimizer": [(v.path, v.value) for v in optimizer_variables],
            "averages": [(v.path, a) for v, a in zip(trainable, averages, strict=False)],
        }
        self._best_checkpoint = tf.train.Checkpoint(step=self.step, model=weights)
        self._checkpoint = tf.train.Checkpoint(
            step=self.step,
            evaluated_step=self.evaluated_step,
            best_step=self._best_step,
            best_metric=self._best_metric,
            centres=self.centres,
            model=weights,
            optimizer=[v.value for v in optimizer_variables],
            averages=[*averages],
        )
        self._options = _options(weights)
        self._folder = os.path.join(model_dir, LATEST)
        self._latest = tf.train.CheckpointManager(self._checkpoint, self._folder, max_to_keep=keep)
        self._best = tf.train.CheckpointManager(
            self._best_checkpoint, os.path.join(self._folder, BEST), max_to_keep=1
        )

    @staticmethod
    def exist(model_dir: str) -> bool:
        """Returns whether a run has saved a checkpoint in model_dir."""
        return bool(_saved(os.path.join(model_dir, LATEST)))

    def restore_latest(self, say: Callable[[str], None] = print) -> int:
        """Restores the newest checkpoint that can be read.

        Args:
          say: prints a line for each newer checkpoint that cannot be read.

        Returns:
          The step of the checkpoint, or 0 if there is no checkpoint.

        Raises:
          MisfitError: the checkpoint has another model, other optimizers or other averages. Nothing
            is restored then.
          UsageError: there are checkpoints, but none of them can be read.
        """
        unreadable: list[str] = []
        for path in _saved(self._folder):
            try:
                self._require_fit(path, *self._parts)
                self._restore(self._checkpoint, path)
            except _UnreadableError as error:
                unreadable.append(f"checkpoint {path}: cannot be read ({error})")
                continue
            for line in unreadable:
                say(f"{line}; going on from the checkpoint before it, of step {int(self.step):,}")
            return int(self.step)
        if unreadable:
            raise UsageError(
                f"{unreadable[0]}, and no older checkpoint can be read; restore it, or choose"
                " another --model_dir"
            )
        return 0

    def restore_best(self) -> int:
        """Restores the model of the best checkpoint, or else the model of the newest checkpoint.

        From the newest checkpoint the averaged weights are restored if it has any.

        Returns:
          The step of the checkpoint. Without any checkpoint it is 0, and nothing is restored.

        Raises:
          MisfitError: the checkpoint has another model; nothing is restored then.
          UsageError: the checkpoint cannot be read.
        """
        best = _saved(os.path.join(self._folder, BEST))
        for path in best + _saved(self._folder):
            try:
                contents = self._require_fit(path, "model")
                self._restore(self._best_checkpoint, path, partly=path not in best)
                if path not in best and any(name.startswith("averages/") for name in contents):
                    averages = [v.value for v in self._model.trainable_variables]
                    self._restore(tf.train.Checkpoint(averages=averages), path, partly=True)
            except _UnreadableError as error:
                raise UsageError(
                    f"checkpoint {path}: cannot be read ({error}); remove it to use another one"
                ) from error
            break
        return int(self.step)

    def save(self, step: int, *, evaluated_step: int) -> None:
        """Saves the newest state.

        Args:
          step: number of steps that are done.
          evaluated_step: the last step that was evaluated.

        Raises:
          UsageError: the checkpoint cannot be written, or a weight is not finite. Nothing is saved
            then.
        """
        self.step.assign(step)
        self.evaluated_step.assign(evaluated_step)
        self._write(self._latest, step)

    def forget_other_centres(self, num_classes: int) -> bool:
        """Empties `centres` if they belong to another number of classes.

        Args:
          num_classes: number of classes whose centres stay.

        Returns:
          Whether there were centres that had to go.
        """
        if len(self.centres.numpy()) in (0, num_classes):
            return False
        self.centres.assign(np.zeros([0, 0], np.int8))
        return True

    @property
    def best_step(self) -> int:
        """The step of the best model so far, or 0 if there is none."""
        return int(self._best_step)

    def save_if_best(self, step: int, metric: float) -> bool:
        """Saves the model as the best one if its metric is the highest so far.

        Args:
          step: step of the model.
          metric: metric of the model, higher is better; NaN is never the best.

        Returns:
          Whether the model was saved.

        Raises:
          UsageError: the checkpoint cannot be written, or a weight is not finite.
        """
        if not metric > float(self._best_metric):
            return False
        self.save_best(step)
        self._best_metric.assign(metric)
        return True

    def save_best(self, step: int) -> None:
        """Saves the model as the best one without comparing metrics; raises what `save` raises."""
        self.step.assign(step)
        self._write(self._best, step)
        self._best_step.assign(step)

    def _write(self, manager: tf.train.CheckpointManager, step: int) -> None:
        # Processes that do not write check the weights too. All processes have the same weights, so
        # all of them stop here, and none waits for another.
        self._require_finite(step)
        if not self._writes:
            return
        if not self._swept:
            self._sweep()  # a killed process may have left files
        try:
            manager.save(checkpoint_number=step, options=self._options)
        except (tf.errors.OpError, OSError) as error:
            self._sweep()
            raise UsageError(
                f"step {step:,} could not be saved in {manager.directory}"
                f" ({first_line(error)}); {GO_ON}"
            ) from error

    def _sweep(self) -> None:
        """Removes the files of unfinished checkpoints, each of which is as large as the model."""
        self._swept = True
        for folder in (self._folder, os.path.join(self._folder, BEST)):
            for part in glob.glob(os.path.join(glob.escape(folder), "ckpt-*_temp")):
                shutil.rmtree(part, ignore_errors=True)

    def _require_finite(self, step: int) -> None:
        """Raises UsageError if a weight is not finite.

        The loss of a step does not show this, because it is computed before the step changes the
        weights. The squares of the weights are checked, because a weight of 1e30 is as useless as
        an infinite one.
        """
        sums = [tf.reduce_sum(tf.square(tf.convert_to_tensor(v))) for v in self._checked]
        if not all(bool(tf.math.is_finite(each)) for each in sums):
            raise UsageError(f"the weights are not finite after step {step:,} {DIVERGED}")

    def _require_fit(self, path: str, *parts: str) -> Mapping[str, tuple[list[int], str]]:
        """Raises MisfitError if a part of a checkpoint is not what this run would restore.

        Returns:
          What `_contents` returns for the checkpoint.
        """
        contents = _contents(path)
        for part in parts:
            if difference := _difference(contents, part, self._parts[part]):
                raise MisfitError(
                    f"checkpoint {path}: does not fit {_PART_NAMES[part]} of this configuration"
                    f" ({difference}); {_SOLUTION}"
                )
        return contents

    def _restore(self, checkpoint: tf.train.Checkpoint, path: str, *, partly: bool = False) -> None:
        try:
            status = checkpoint.restore(path, self._options)
            if partly:
                status.expect_partial().assert_existing_objects_matched()
            else:
                status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
            raise MisfitError(
                f"checkpoint {path}: does not fit this configuration ({first_line(error)});"
                f" {_SOLUTION}"
            ) from error
        except (tf.errors.OpError, OSError, IndexError, RuntimeError) as error:
            # TensorFlow's reader raises Python's own errors for a file that was cut short.
            raise _UnreadableError(first_line(error)) from error


class _UnreadableError(Exception):
    """The files of a checkpoint are damaged or lost. This has nothing to do with the model."""


_PART_NAMES = {
    "model": "the model",
    "optimizer": "the optimizer (train.make_optimizer, train.make_head_optimizer)",
    "averages": "the average of the weights (train.average_decay)",
}


def _options(weights: Sequence[tf.Variable]) -> tf.train.CheckpointOptions:
    # On a TPU slice, each of the other machines would write its part of a checkpoint to its own
    # disk.
    strategy = getattr(weights[0], "distribute_strategy", None) if weights else None
    is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    return tf.train.CheckpointOptions(experimental_io_device="/job:localhost" if is_tpu else None)


def _contents(path: str) -> dict[str, tuple[list[int], str]]:
    """Returns the shape and type of each variable in a checkpoint by the name it has there."""
    try:
        reader = tf.train.load_checkpoint(path)
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, OSError, IndexError, RuntimeError, ValueError) as error:
        raise _UnreadableError(first_line(error)) from error
    return {
        name.removesuffix(_VARIABLE): (list(shapes[name]), types[name].name)
        for name in shapes
        if name.endswith(_VARIABLE)
    }


def _difference(
    contents: Mapping[str, tuple[list[int], str]],
    part: str,
    wanted: Sequence[tuple[str, tf.Variable]],
) -> str | None:
    """Says how a part of a checkpoint differs from the wanted variables; None if it does not."""
    num_saved = sum(name.startswith(f"{part}/") for name in contents)
    for place, (name, variable) in enumerate(wanted):
        now = (list(variable.shape), variable.dtype.name)
        before = contents.get(f"{part}/{place}", now)
        if before != now:
            was, is_now = (f"{dtype} {shape}" for shape, dtype in (before, now))
            return f"{name} was {was}, is {is_now}"
    if num_saved == len(wanted):
        return None
    return f"it had {num_saved} variables, now it has {len(wanted)}"


def _saved(folder: str) -> list[str]:
    """Returns the finished checkpoints in a folder, the newest first.

    The file names are read instead of TensorFlow's list beside them, because that can be lost.
    """
    checkpoints = {}
    for path in glob.glob(os.path.join(glob.escape(folder), "ckpt-*.index")):
        name = path.removesuffix(".index")
        if (number := name.rpartition("-")[2]).isdigit():
            checkpoints[int(number)] = name
    return [checkpoints[number] for number in sorted(checkpoints, reverse=True)]
