"""Saving and restoring a run: all that a step depends on, and the best model so far."""

import glob
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError, first_line
from preprocessing.index import DatasetInfo
from preprocessing.storage import write_file
from trainer.disk import GO_ON, written
from trainer.updates import Updates

_VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"
LATEST, BEST = "checkpoints", "best"
METRICS_FILE = "metrics.jsonl"
DATA_FILE = "data.json"
DIVERGED = (
    "(the model has diverged); what was saved before is kept; lower the learning rate, or set"
    " train.clip_norm"
)


class MisfitError(UsageError):
    """A checkpoint that was made with another configuration.

    Args:
      path: of the checkpoint.
      what: of it does not fit, and how.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"checkpoint {path}: {what}; choose another --model_dir, or the configuration it was"
            " made with"
        )
        self.path, self.what = path, what


class Checkpoints:
    """Checkpoints of a run under model_dir.

    Every variable of the model is saved, the state of random layers too, so that a resumed run
    goes on as if it had never stopped. Nothing of the input is: batches follow from the step.

    Args:
      model_dir: folder of the run.
      model: a built model.
      updates: its optimizers and averages, or None to restore only the model.
      keep: how many of the latest are kept.
      writes: whether this process is the one that writes, of several that train together.

    Attributes:
      centres: [C, D] int8, of the classes, for hard batches; empty where there are none.
    """

    def __init__(
        self,
        model_dir: str,
        model: keras.Model,
        updates: Updates | None = None,
        *,
        keep: int = 2,
        writes: bool = True,
    ) -> None:
        self._model = model
        self._writes, self._swept = writes, False
        self.step, self.evaluated_step, self._best_step = (
            tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(3)
        )
        self._best_metric = tf.Variable(-np.inf, dtype=tf.float64, trainable=False)
        # Of any shape, so that a checkpoint with a table is restored before one is made.
        self.centres = tf.Variable(
            np.zeros([0, 0], np.int8), trainable=False, shape=[None, None], dtype=tf.int8
        )
        weights = [v.value for v in model.variables]
        averages = updates.averages if updates else []
        self._finite = [v for v in (*weights, *averages) if v.dtype.is_floating]
        trainable = model.trainable_variables
        # By the name they are saved under: what each part consists of, by name and variable.
        self._parts: dict[str, list[tuple[str, tf.Variable]]] = {
            "model": [(v.path, v.value) for v in model.variables],
            "optimizer": [(v.path, v.value) for v in updates.variables] if updates else [],
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
            optimizer=[v.value for v in updates.variables] if updates else [],
            averages=averages,
        )
        # The other machines of a TPU slice would write what they hold where they are.
        strategy = getattr(weights[0], "distribute_strategy", None) if weights else None
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        self._options = tf.train.CheckpointOptions(
            experimental_io_device="/job:localhost" if is_tpu else None
        )
        self._folder = os.path.join(model_dir, LATEST)
        self._latest = tf.train.CheckpointManager(self._checkpoint, self._folder, max_to_keep=keep)
        self._best = tf.train.CheckpointManager(
            self._best_checkpoint, os.path.join(self._folder, BEST), max_to_keep=1
        )

    @staticmethod
    def exist(model_dir: str) -> bool:
        """Whether a run has saved anything."""
        return bool(_saved(os.path.join(model_dir, LATEST)))

    def restore_latest(self, say: Callable[[str], None] = print) -> int:
        """Restores the newest checkpoint that can be read.

        Args:
          say: told of each newer one that cannot.

        Returns:
          The step it is from, 0 where there is none.

        Raises:
          MisfitError: model, optimizer or averages are others; nothing is restored then.
          UsageError: none can be read.
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
                say(f"{line}; going on from the one before, step {int(self.step):,}")
            return int(self.step)
        if unreadable:
            raise UsageError(
                f"{unreadable[0]}, nor can any other there; restore it, or choose another"
                " --model_dir"
            )
        return 0

    def restore_best(self) -> int:
        """Restores the model of the best checkpoint, else of the newest, and gives its step.

        Of the newest, with averaged weights if there are any. Without any checkpoint nothing is
        restored, and it is 0.

        Raises:
          MisfitError: the model is another one; nothing is restored then.
          UsageError: it cannot be read.
        """
        best = _saved(os.path.join(self._folder, BEST))
        for path in best + _saved(self._folder):
            try:
                self._require_fit(path, "model")
                self._restore(self._best_checkpoint, path, partly=path not in best)
                if path not in best and _has_averages(path):
                    averages = [v.value for v in self._model.trainable_variables]
                    self._restore(tf.train.Checkpoint(averages=averages), path, partly=True)
            except _UnreadableError as error:
                raise UsageError(
                    f"checkpoint {path}: cannot be read ({error}); remove it, and another one is"
                    " used"
                ) from error
            break
        return int(self.step)

    def save(self, step: int, *, evaluated_step: int) -> None:
        """Saves the newest state, and the last step that was evaluated.

        Raises:
          UsageError: it could not be written, or a weight is not finite; nothing is saved then.
        """
        self.step.assign(step)
        self.evaluated_step.assign(evaluated_step)
        self._write(self._latest, step)

    def forget_centres(self, *, but_of: int) -> bool:
        """Empties `centres`, unless they are of so many classes; whether there were any."""
        found = len(self.centres.numpy())
        if found in (0, but_of):
            return False
        self.centres.assign(np.zeros([0, 0], np.int8))
        return True

    @property
    def best_step(self) -> int:
        """The step of the best model so far, 0 where there is none."""
        return int(self._best_step)

    def save_if_best(self, step: int, metric: float) -> bool:
        """Keeps the model if its metric is the highest so far; errors as `save`."""
        if not metric > float(self._best_metric):
            return False
        self.save_best(step)
        self._best_metric.assign(metric)
        return True

    def save_best(self, step: int) -> None:
        """Keeps the model, whatever the metric of the one before; errors as `save`."""
        self.step.assign(step)
        self._write(self._best, step)
        self._best_step.assign(step)

    def _write(self, manager: tf.train.CheckpointManager, step: int) -> None:
        # Every process looks, also one that does not write: the weights are the same in all, so all
        # end here, and none waits for another.
        self._require_finite(step)
        if not self._writes:
            return
        if not self._swept:
            self._sweep()  # after a kill
        try:
            manager.save(checkpoint_number=step, options=self._options)
        except (tf.errors.OpError, OSError) as error:
            self._sweep()
            raise UsageError(
                f"step {step:,} could not be saved in {manager.directory}"
                f" ({first_line(error)}); {GO_ON}"
            ) from error

    def _sweep(self) -> None:
        """Removes what a checkpoint that was not finished has left, as large as the model."""
        self._swept = True
        for folder in (self._folder, os.path.join(self._folder, BEST)):
            for part in glob.glob(os.path.join(glob.escape(folder), "ckpt-*_temp")):
                shutil.rmtree(part, ignore_errors=True)

    def _require_finite(self, step: int) -> None:
        """The loss of a step tells nothing of the weights that the step leaves.

        Their squares are looked at: of a weight of 1e30 nothing can be computed either.
        """
        sums = [tf.reduce_sum(tf.square(tf.convert_to_tensor(v))) for v in self._finite]
        if not all(bool(tf.math.is_finite(each)) for each in sums):
            raise UsageError(f"the weights are not finite after step {step:,} {DIVERGED}")

    def _require_fit(self, path: str, *parts: str) -> None:
        """Raises MisfitError where a part of a checkpoint is not what is to be restored."""
        saved = _contents(path)
        for part in parts:
            if how := _difference(saved, part, self._parts[part]):
                raise MisfitError(
                    path, f"does not fit {_CALLED[part]} of this configuration ({how})"
                )

    def _restore(self, checkpoint: tf.train.Checkpoint, path: str, *, partly: bool = False) -> None:
        try:
            status = checkpoint.restore(path, self._options)
            if partly:
                status.expect_partial().assert_existing_objects_matched()
            else:
                status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
            what = f"does not fit this configuration ({first_line(error)})"
            raise MisfitError(path, what) from error
        except (tf.errors.OpError, OSError, IndexError, RuntimeError) as error:
            # TensorFlow's reader gives Python's own errors for a file that was cut short.
            raise _UnreadableError(first_line(error)) from error


class _UnreadableError(Exception):
    """Files that are damaged or lost, whatever the model."""


_CALLED = {
    "model": "the model",
    "optimizer": "the optimizer (train.make_optimizer, train.make_head_optimizer)",
    "averages": "the average of the weights (train.average_decay)",
}


def _contents(path: str) -> dict[str, tuple[list[int], str]]:
    """Shape and type of each variable in a checkpoint, by the name it is saved under."""
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
    saved: Mapping[str, tuple[list[int], str]], part: str, wanted: Sequence[tuple[str, tf.Variable]]
) -> str | None:
    """How what was saved of a part differs from what is wanted; None where it does not."""
    number = sum(name.startswith(f"{part}/") for name in saved)
    if not number and wanted:
        return "there was none, now there is one"
    if number and not wanted:
        return "there was one, now there is none"
    for place, (name, variable) in enumerate(wanted):
        own = (list(variable.shape), variable.dtype.name)
        there = saved.get(f"{part}/{place}", own)
        if there != own:
            shown = [f"{kind} {shape}" for shape, kind in (there, own)]
            return f"{name} was {shown[0]}, is {shown[1]}"
    return f"{number} variables, now {len(wanted)}" if number != len(wanted) else None


def _saved(folder: str) -> list[str]:
    """Whole checkpoints in a folder, the newest first.

    Not by the list of names that TensorFlow keeps beside them, which can be lost.
    """
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), "ckpt-*.index")):
        name = path.removesuffix(".index")
        if (number := name.rpartition("-")[2]).isdigit():
            found[int(number)] = name
    return [found[number] for number in sorted(found, reverse=True)]


def _has_averages(path: str) -> bool:
    return any(name.startswith("averages/") for name, _ in tf.train.list_variables(path))


def data_of(model_dir: str) -> dict[str, Any]:
    """What a run was trained on: "input_fingerprint" and "settings" of a data set.

    Raises:
      UsageError: it is not noted.
    """
    path = os.path.join(model_dir, LATEST, DATA_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UsageError(
            f"model_dir {model_dir}: which data the run was trained on is not noted (no {path});"
            " train it for another step, or train again"
        ) from error


def is_data_of(model_dir: str, info: DatasetInfo) -> bool:
    """Whether a run was trained on this data set."""
    try:
        with open(os.path.join(model_dir, LATEST, DATA_FILE), encoding="utf-8") as file:
            return json.load(file) == _identity(info)
    except FileNotFoundError:
        return False


def read_metrics(model_dir: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in order; none where there is no such file."""
    rows: list[dict[str, Any]] = []
    try:
        with open(os.path.join(model_dir, METRICS_FILE), encoding="utf-8") as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break  # A kill cut this line short; nothing follows it.
    except FileNotFoundError:
        pass
    return rows


def claim_data(model_dir: str, info: DatasetInfo) -> None:
    """Notes which data set a run is trained on.

    Raises:
      UsageError: the run has checkpoints from another one.
    """
    if Checkpoints.exist(model_dir) and not is_data_of(model_dir, info):
        raise UsageError(
            f"model_dir {model_dir}: the run there was trained on another data set than"
            f" {info.directory}; choose another --model_dir"
        )
    path = os.path.join(model_dir, LATEST, DATA_FILE)
    with written(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, json.dumps(_identity(info), sort_keys=True).encode())


def _identity(info: DatasetInfo) -> dict[str, Any]:
    return {"input_fingerprint": info.input_fingerprint, "settings": dict(info.settings)}
