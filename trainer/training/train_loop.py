"""Training from one evaluation to the next: reads batches, runs steps, reports their numbers."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan
from trainer.data.damaged_records import (
    Damaged,
    find_damaged,
    naming_unreadable_records,
    require_replaceable,
    summary,
)
from trainer.data.input_pipeline import chunks, iterated, train_batches
from trainer.evaluation.inference import Forward, SplitImages
from trainer.runs.checkpoints import DIVERGED
from trainer.runs.write_errors import naming_write_errors
from trainer.training.gradients import Gradients
from trainer.training.optimizers import Optimizers
from trainer.training.telemetry import Telemetry
from trainer.training.train_step import LastBatch, StepsResult, make_train_steps
from tripletmill.errors import UsageError

DAMAGED_FILE = "damaged.jsonl"

# An error message names at most this many images.
MOST_NAMES = 5


@contextlib.contextmanager
def naming_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turns TensorFlow's error about memory into a UsageError that says what to do.

    Args:
      batch_size: images of a step, for the message.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        reason = re.search(r"OOM when allocating .*?(?= and type|$)", str(error), re.MULTILINE)
        raise UsageError(
            f"a step of {batch_size:,} images does not fit into memory"
            f" ({reason.group() if reason else str(error).splitlines()[0]}); raise"
            " train.microbatches, which changes neither the loss nor the gradients"
        ) from error


@dataclasses.dataclass
class TrainLoop:
    """The training steps of a run.

    Attributes:
      model: the model that is trained.
      gradients: computes the gradients of `model`, see `make_gradients`.
      optimizers: the optimizers of `model`.
      images: images of the train split. Their strategy, records and handling of damaged records
        hold for training too; their size is that of the evaluation.
      plan: which rows each step sees, over all hosts.
      augmentation: how crops are drawn.
      steps_per_loop: steps in one call of TensorFlow.
      telemetry: records the numbers of the steps.
      model_dir: folder in which damaged records are listed; None for a process that writes nothing.
      should_stop: asked after every call of TensorFlow.
    """

    model: keras.Model
    gradients: Callable[[tf.Tensor, tf.Tensor], Gradients]
    optimizers: Optimizers
    images: SplitImages
    plan: BatchPlan
    augmentation: Augmentation
    steps_per_loop: int
    telemetry: Telemetry
    model_dir: str | None
    should_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self._run_steps = make_train_steps(
            self.images.strategy,
            self.gradients,
            self.optimizers,
            batch_size=self.plan.batch_size // self.images.strategy.num_replicas_in_sync,
            embedding_dim=int(self.model.output_shape[1]),
        )
        # Number of steps done, the last batch, and the class centres that it was drawn by.
        self._last: tuple[int, LastBatch, np.ndarray | None] | None = None

    def run(self, step: int, goal: int, centres: np.ndarray | None) -> tuple[int, bool]:
        """Trains up to a step, or until the run is asked to stop.

        Args:
          step: number of steps that are done.
          goal: number of steps to reach.
          centres: class centres for hard batches, see `BatchPlan.batch`.

        Returns:
          The number of steps that are done now, and whether the run was asked to stop.

        Raises:
          UsageError: the loss is not finite, a record is damaged, or memory is not enough.
        """
        for first_step, num_steps in chunks(step, goal, self.plan.batch_size):
            with iterated(self._batches(first_step, num_steps, centres)) as batches:
                while step < first_step + num_steps:
                    count = min(self.steps_per_loop, first_step + num_steps - step)
                    self._run_once(batches(), step, count, centres)
                    step += count
                    if self.should_stop():
                        return step, True
        return step, False

    def log_last_batch(self) -> None:
        """Shows the last batch in TensorBoard, if there was a batch."""
        if self._last is None:
            return
        step, batch, centres = self._last
        # Of several hosts, the first one shows its part, which is the first rows of the batch.
        self.telemetry.batch(step, batch, self._rows([step - 1], centres), self.images)

    def require_finite(self, forward: Forward) -> None:
        """Checks that the model has not diverged in the last step.

        The loss of the last step does not show this, because it is computed before the step changes
        the weights. The images of the last batch are embedded anew instead.

        Args:
          forward: embeds images by the weights that training has reached.

        Raises:
          UsageError: the model has diverged.
        """
        if self._last is None:
            return
        step, _, centres = self._last
        rows = np.unique(self._rows([step - 1], centres))[: self.images.batch_size]
        embeddings, _ = self.images.apply(forward, "last batch", rows)
        num_bad = np.count_nonzero(~np.isfinite(embeddings).all(axis=1))
        # An embedding that overflows before it is scaled to unit length comes out as zero.
        if num_bad or not embeddings.any():
            problem = (
                f"{num_bad} of {len(embeddings)} embeddings are not finite"
                if num_bad
                else "all are zero"
            )
            raise UsageError(
                f"embeddings of the last batch: {problem} after step {step:,} {DIVERGED}"
            )

    def _run_once(
        self, iterator: Iterator, step: int, count: int, centres: np.ndarray | None
    ) -> None:
        """Runs `count` steps after `step` steps, in one call of TensorFlow."""
        rows = functools.partial(self._rows, range(step, step + count), centres)
        rates = self.optimizers.learning_rates
        began = time.monotonic()
        with (
            naming_unreadable_records(self.images.index, rows),
            naming_out_of_memory(self.plan.batch_size),
        ):
            result = self._run_steps(iterator, count)
        seconds = time.monotonic() - began
        if result.finite_steps < count:
            raise UsageError(self._not_finite(result, step + result.finite_steps, centres))
        if result.num_replaced:
            self._report_damaged(result, rows())
        numbers = {
            **result.statistics,
            **rates,
            "damaged": result.num_replaced,
            "images_per_second": count * self.plan.batch_size / seconds,
        }
        if result.input_seconds is not None:
            numbers["input_share"] = result.input_seconds / seconds
        self.telemetry.training(step + count, numbers, result.last)
        self._last = step + count, result.last, centres

    def _report_damaged(self, result: StepsResult, rows: np.ndarray) -> None:
        """Lists damaged records; raises UsageError if training is not to go on without them."""
        index, setting = self.images.index, self.images.damaged
        damaged = find_damaged(index, rows)
        require_replaceable(damaged, result.num_replaced, result.num_unreadable, setting)
        if self.model_dir is not None:
            for line in append_damaged(self.model_dir, damaged, result.num_replaced):
                self.telemetry.line(line)

    def _batches(
        self, first_step: int, num_steps: int, centres: np.ndarray | None
    ) -> tf.distribute.DistributedDataset:
        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            self._host = (context.input_pipeline_id, context.num_input_pipelines)
            return train_batches(
                self.images.index,
                self.plan.for_host(*self._host),
                self.images.records,
                first_step=first_step,
                num_steps=num_steps,
                image_size=int(self.model.input_shape[1]),
                augmentation=self.augmentation,
                replicas=context.num_replicas_in_sync // context.num_input_pipelines,
                centres=centres,
            )

        return self.images.strategy.distribute_datasets_from_function(of_host)

    def _rows(self, steps: Iterable[int], centres: np.ndarray | None) -> np.ndarray:
        return np.concatenate([self.plan.batch(step, centres=centres) for step in steps])

    def _local_rows(self, step: int, result: StepsResult, centres: np.ndarray | None) -> np.ndarray:
        """Returns the rows of a step's batch that this process sees."""
        sees_all = len(result.not_finite) == self.plan.batch_size
        plan = self.plan if sees_all else self.plan.for_host(*self._host)
        return plan.batch(step, centres=centres)

    def _not_finite(self, result: StepsResult, step: int, centres: np.ndarray | None) -> str:
        """Returns the error message for a loss that is not finite after `step` steps."""
        rows = self._local_rows(step, result, centres)
        bad_rows = rows[result.not_finite]
        if not len(bad_rows):
            problem = "all embeddings are finite, but not their distances"
        elif len(bad_rows) == len(rows):
            problem = "no embedding is finite: the weights have diverged"
        else:
            source_ids = self.images.index.column("source_id")
            names = source_ids.take(bad_rows[:MOST_NAMES]).to_pylist()
            num_more = len(bad_rows) - MOST_NAMES
            more = f" and {num_more:,} more" if num_more > 0 else ""
            problem = f"the embeddings of {', '.join(map(str, names))}{more} are not finite"
        return (
            f"the loss is not finite in step {step + 1:,} ({problem}); what was saved before is"
            " kept; lower the learning rate, set train.clip_norm, or look at these images"
        )


def append_damaged(model_dir: str, damaged: Sequence[Damaged], num_replaced: int) -> list[str]:
    """Adds damaged records to the list in the run's folder, unless they are in it already.

    Args:
      model_dir: folder of the run.
      damaged: the damaged records. It is empty if they can be read by now.
      num_replaced: number of images that were replaced by others.

    Returns:
      A line to print for each record that is new in the list.

    Raises:
      UsageError: the list cannot be written.
    """
    path = os.path.join(model_dir, DAMAGED_FILE)
    rows = [json.dumps(dataclasses.asdict(record)) + "\n" for record in damaged]
    with naming_write_errors(path), open(path, "a+", encoding="utf-8") as file:
        file.seek(0)
        known = {*file}
        new = [number for number, row in enumerate(rows) if row not in known]
        file.writelines(rows[number] for number in new)
    if not damaged:
        return [summary(damaged, num_replaced)]
    return [f"{damaged[number]}; another image of its class takes its place" for number in new]
