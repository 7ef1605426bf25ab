"""Training from one evaluation to the next: batches in, weights moved, what happened told."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from trainer.data.reading import Records
from trainer.evaluation.inference import Forward, SplitImages
from trainer.runs.checkpoints import DIVERGED
from trainer.runs.write_errors import naming_write_errors
from trainer.training.optimizers import Optimizers
from trainer.training.telemetry import Telemetry
from trainer.training.train_step import LastBatch, StepsResult
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex

DAMAGED_FILE = "damaged.jsonl"

NAMED = 5


@contextlib.contextmanager
def naming_out_of_memory(batch_size: int) -> Iterator[None]:
    """Raises UsageError, with what to do, where a step of so many images does not fit."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        what = re.search(r"OOM when allocating .*?(?= and type|$)", str(error), re.MULTILINE)
        raise UsageError(
            f"a step of {batch_size:,} images does not fit into memory"
            f" ({what.group() if what else str(error).splitlines()[0]}); raise"
            " train.microbatches: neither loss nor gradients change by it"
        ) from error


@dataclasses.dataclass
class TrainLoop:
    """Training steps of a run.

    Attributes:
      strategy: of `run_steps`.
      run_steps: see `make_train_steps`.
      optimizers: of `run_steps`.
      index: the train split.
      plan: which of its rows each step sees, over all hosts.
      records: where they are read.
      augmentation: how crops are drawn.
      image_size: side of the crops, pixels.
      steps_per_loop: steps in one call of TensorFlow.
      damaged: what to do about a damaged record, see `Reading`.
      model_dir: where damaged records are listed; None lists them nowhere.
      telemetry: what is told of the steps.
      should_stop: asked after every call of TensorFlow.
    """

    strategy: tf.distribute.Strategy
    run_steps: Callable[[Iterator, int], StepsResult]
    optimizers: Optimizers
    index: DatasetIndex
    plan: BatchPlan
    records: Records
    augmentation: Augmentation
    image_size: int
    steps_per_loop: int
    damaged: str
    model_dir: str | None
    telemetry: Telemetry
    should_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        # With the number of steps done and the table it was drawn with.
        self._last: tuple[int, LastBatch, np.ndarray | None] | None = None

    def run(self, step: int, goal: int, centres: np.ndarray | None) -> tuple[int, bool]:
        """Trains up to a step, or until it is asked to stop.

        Args:
          step: how many steps are done.
          goal: how many are to be.
          centres: for hard batches, see `BatchPlan.batch`.

        Returns:
          How many are done now, and whether it was asked to stop.

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

    def log_last_batch(self, images: SplitImages) -> None:
        """Shows the last batch, if there was one; of several hosts, what this one has of it.

        Args:
          images: of the train split, as they are shown.
        """
        if self._last is None:
            return
        step, batch, centres = self._last
        # The first host, which shows it, has the first rows of the batch.
        self.telemetry.batch(step, batch, self._rows([step - 1], centres), images)

    def require_finite(self, forward: Forward, images: SplitImages) -> None:
        """Sees that the model has not diverged in the last step, of which its loss tells nothing.

        Args:
          forward: embeds images by the model as it is now.
          images: of the train split.

        Raises:
          UsageError: it has, by the images of the last batch.
        """
        if self._last is None:
            return
        step, _, centres = self._last
        rows = np.unique(self._rows([step - 1], centres))[: images.batch_size]
        embeddings, _ = images.apply(forward, "last batch", rows)
        bad = np.count_nonzero(~np.isfinite(embeddings).all(axis=1))
        # What is scaled to unit length after it has overflowed comes out as zero.
        if bad or not embeddings.any():
            what = (
                f"{bad} of {len(embeddings)} embeddings are not finite" if bad else "all are zero"
            )
            raise UsageError(f"embeddings of the last batch: {what} after step {step:,} {DIVERGED}")

    def _run_once(
        self, iterator: Iterator, step: int, count: int, centres: np.ndarray | None
    ) -> None:
        """One call of TensorFlow."""
        rows = functools.partial(self._rows, range(step, step + count), centres)
        rates = self.optimizers.learning_rates
        began = time.monotonic()
        with (
            naming_unreadable_records(self.index, rows),
            naming_out_of_memory(self.plan.batch_size),
        ):
            loop = self.run_steps(iterator, count)
        seconds = time.monotonic() - began
        if loop.finite_steps < count:
            bad = step + loop.finite_steps
            raise UsageError(self._not_finite(loop, bad, self._local_rows(bad, loop, centres)))
        if loop.replaced:
            found = find_damaged(self.index, rows())
            require_replaceable(found, loop.replaced, loop.num_unreadable, self.damaged)
            if self.model_dir is not None:
                for line in append_damaged(self.model_dir, found, loop.replaced):
                    self.telemetry.line(line)
        numbers = {
            **loop.statistics,
            **rates,
            "damaged": loop.replaced,
            "images_per_second": count * self.plan.batch_size / seconds,
        }
        if loop.input_seconds is not None:
            numbers["input_share"] = loop.input_seconds / seconds
        self.telemetry.training(step + count, numbers, loop.last)
        self._last = step + count, loop.last, centres

    def _batches(
        self, first_step: int, num_steps: int, centres: np.ndarray | None
    ) -> tf.distribute.DistributedDataset:
        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            self._host = (context.input_pipeline_id, context.num_input_pipelines)
            return train_batches(
                self.index,
                self.plan.for_host(*self._host),
                self.records,
                first_step=first_step,
                num_steps=num_steps,
                image_size=self.image_size,
                augmentation=self.augmentation,
                replicas=context.num_replicas_in_sync // context.num_input_pipelines,
                centres=centres,
            )

        return self.strategy.distribute_datasets_from_function(of_host)

    def _rows(self, steps: Iterable[int], centres: np.ndarray | None) -> np.ndarray:
        return np.concatenate([self.plan.batch(step, centres=centres) for step in steps])

    def _local_rows(self, step: int, loop: StepsResult, centres: np.ndarray | None) -> np.ndarray:
        """Rows of a step's batch that this process sees: all, or those of its host."""
        one = len(loop.not_finite) == self.plan.batch_size
        plan = self.plan if one else self.plan.for_host(*self._host)
        return plan.batch(step, centres=centres)

    def _not_finite(self, loop: StepsResult, step: int, rows: np.ndarray) -> str:
        """What is wrong in step + 1, whose rows of the index are these."""
        bad = rows[loop.not_finite]
        if not len(bad):
            whose = "all embeddings are finite, but not their distances"
        elif len(bad) == len(rows):
            whose = "no embedding is finite: the weights have diverged"
        else:
            names = self.index.column("source_id").take(bad[:NAMED]).to_pylist()
            more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
            whose = f"the embeddings of {', '.join(map(str, names))}{more} are not finite"
        return (
            f"the loss is not finite in step {step + 1:,} ({whose}); what was saved before is kept;"
            " lower the learning rate, set train.clip_norm, or look at these images"
        )


def append_damaged(model_dir: str, found: Sequence[Damaged], replaced: int) -> list[str]:
    """Adds those to model_dir's list that are not in it yet; a line to print for each of these.

    Raises:
      UsageError: the list cannot be written.
    """
    path = os.path.join(model_dir, DAMAGED_FILE)
    rows = [json.dumps(dataclasses.asdict(each)) + "\n" for each in found]
    with naming_write_errors(path), open(path, "a+", encoding="utf-8") as file:
        file.seek(0)
        known = {*file}
        new = [number for number, row in enumerate(rows) if row not in known]
        file.writelines(rows[number] for number in new)
    if not found:
        return [summary(found, replaced)]
    return [f"{found[number]}; another image of its class takes its place" for number in new]
