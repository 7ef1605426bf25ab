"""Saving and restoring a run: all that a step depends on, and the best model so far."""

import json
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError
from preprocessing.index import DatasetInfo
from preprocessing.storage import write_file

LATEST, BEST = "checkpoints", "best"
BEST_FILE = "best.json"
DATA_FILE = "data.json"


class Checkpoints:
    """Checkpoints of a model and its optimizer under model_dir.

    Every variable of the model is saved, the state of random layers too, so that a resumed run
    goes on as if it had never stopped. Nothing of the input is: batches follow from the step.

    Args:
      model_dir: folder of the run.
      model: a built model.
      optimizer: a built optimizer, or None to restore only the model.
      keep: how many of the latest are kept.

    Attributes:
      centres: [C, D] int8, of the classes, for hard batches; empty where there are none.
    """

    def __init__(
        self,
        model_dir: str,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        keep: int = 2,
    ) -> None:
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.evaluated_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Of any shape, so that a checkpoint with a table is restored before one is made.
        self.centres = tf.Variable(
            np.zeros([0, 0], np.int8), trainable=False, shape=[None, None], dtype=tf.int8
        )
        weights = [v.value for v in model.variables]
        self._best_checkpoint = tf.train.Checkpoint(step=self.step, model=weights)
        self._checkpoint = tf.train.Checkpoint(
            step=self.step,
            evaluated_step=self.evaluated_step,
            centres=self.centres,
            model=weights,
            optimizer=[v.value for v in optimizer.variables] if optimizer else [],
        )
        self._latest = tf.train.CheckpointManager(
            self._checkpoint, os.path.join(model_dir, LATEST), max_to_keep=keep
        )
        self._best = tf.train.CheckpointManager(
            self._best_checkpoint, os.path.join(model_dir, LATEST, BEST), max_to_keep=1
        )
        self._best_file = os.path.join(model_dir, LATEST, BEST_FILE)

    def restore_latest(self) -> int:
        """Restores the newest checkpoint; the step it is from, 0 where there is none."""
        if self._latest.latest_checkpoint is None:
            return 0
        self._restore(self._checkpoint, self._latest.latest_checkpoint)
        return int(self.step.numpy())

    @staticmethod
    def exist(model_dir: str) -> bool:
        """Whether a run has saved anything."""
        folder = os.path.join(model_dir, LATEST)
        return tf.train.latest_checkpoint(folder) is not None

    def restore_best(self) -> int:
        """Restores the model of the best checkpoint, else of the newest, and gives its step.

        Without any checkpoint nothing is restored, and it is 0.
        """
        for manager in (self._best, self._latest):
            path = manager.latest_checkpoint
            if path is not None:
                self._restore(self._best_checkpoint, path, partly=manager is self._latest)
                break
        return int(self.step.numpy())

    def save(self, step: int, *, evaluated_step: int) -> None:
        """Saves the newest state, and the last step that was evaluated."""
        self.step.assign(step)
        self.evaluated_step.assign(evaluated_step)
        self._latest.save(checkpoint_number=step)

    def best_metric(self) -> float:
        """The metric of the best checkpoint, minus infinity where there is none."""
        try:
            with open(self._best_file, encoding="utf-8") as file:
                return json.load(file)["metric"]
        except FileNotFoundError:
            return -float("inf")

    def save_if_best(self, step: int, metric: float) -> bool:
        """Keeps the model if its metric is the highest so far."""
        if not metric > self.best_metric():
            return False
        self.step.assign(step)
        self._best.save(checkpoint_number=step)
        write_file(self._best_file, json.dumps({"step": step, "metric": metric}).encode())
        return True

    def _restore(self, checkpoint: tf.train.Checkpoint, path: str, *, partly: bool = False) -> None:
        try:
            status = checkpoint.restore(path)
            if partly:
                status.expect_partial().assert_existing_objects_matched()
            else:
                status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"checkpoint {path}: does not fit the model of this configuration ({reason});"
                " choose another --model_dir, or the configuration it was made with"
            ) from error


def is_data_of(model_dir: str, info: DatasetInfo) -> bool:
    """Whether a run was trained on this data set."""
    try:
        with open(os.path.join(model_dir, LATEST, DATA_FILE), encoding="utf-8") as file:
            return json.load(file) == _identity(info)
    except FileNotFoundError:
        return False


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
    os.makedirs(os.path.join(model_dir, LATEST), exist_ok=True)
    path = os.path.join(model_dir, LATEST, DATA_FILE)
    write_file(path, json.dumps(_identity(info), sort_keys=True).encode())


def _identity(info: DatasetInfo) -> dict[str, Any]:
    return {"input_fingerprint": info.input_fingerprint, "settings": dict(info.settings)}
