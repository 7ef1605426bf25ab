"""The training loop."""

import contextlib
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError, require_positive
from preprocessing.index import DatasetIndex, DatasetInfo, load_index
from preprocessing.storage import exclusive, require_local
from trainer.augmentation import Augmentation
from trainer.batching import BatchPlan
from trainer.checkpoints import Checkpoints, claim_data
from trainer.class_centres import class_centres
from trainer.damage import append_damaged, find_damaged, require_replaceable, unreadable_named
from trainer.evaluate import (
    check_central_share,
    embed,
    forward_function,
    has_queries,
    measure,
    numbers,
)
from trainer.images import Images
from trainer.input import chunks, train_batches
from trainer.loop import Loop, make_loop
from trainer.losses import TripletResult
from trainer.reading import Reading, checked
from trainer.records import Records
from trainer.strategy import make_strategy as default_strategy
from trainer.telemetry import Telemetry

EVALUATION_BATCH = 128
LOCK_FILE = ".lock"


def train(
    *,
    data_dir: str,
    model_dir: str,
    build_model: Callable[[], keras.Model],
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult],
    make_optimizer: Callable[[], keras.optimizers.Optimizer],
    make_plan: Callable[..., BatchPlan],
    steps: int,
    augmentation: Augmentation | None = None,
    reading: Reading | None = None,
    central_share: float = 1.0,
    images_per_centre: int = 8,
    evaluate_every: int = 100,
    steps_per_loop: int = 10,
    seed: int = 0,
    make_strategy: Callable[[], tf.distribute.Strategy] = default_strategy,
    on_ready: Callable[[], None] = lambda: None,
) -> bool:
    """Trains a model on the train split, watching the val split, and resumes where it stopped.

    Args:
      data_dir: a finished data set.
      model_dir: folder of the run; a run that lies there goes on.
      build_model: makes the model, [batch, S, S, 3] uint8 -> [batch, D].
      triplets: the loss, of labels [b] and embeddings [b, D]; see `trainer.losses`.
      make_optimizer: makes the optimizer.
      make_plan: of (index, seed=seed), makes the plan of the batches: `BatchPlan` with the rest.
      steps: optimizer steps of the whole run.
      augmentation: how crops are drawn.
      reading: how records are read.
      central_share: for val, side of the central square that is kept, as a share of the short side.
      images_per_centre: for hard batches, images of each class whose mean embedding is its centre.
      evaluate_every: steps between evaluations on val; the model with the highest MAP@R is kept.
      steps_per_loop: steps in one call of TensorFlow.
      seed: of the weights, the batches and the crops.
      make_strategy: makes the distribution strategy.
      on_ready: called once all is set up and restored, before anything is written or trained.

    Returns:
      Whether the last step was reached; False after Ctrl+C or SIGTERM, which finish the loop in
      hand and save.

    Raises:
      UsageError: the data, the batch or the checkpoint do not fit, or the loss is not finite.
    """
    require_local(model_dir, "model_dir")
    require_positive(
        "train",
        steps=steps,
        evaluate_every=evaluate_every,
        steps_per_loop=steps_per_loop,
        images_per_centre=images_per_centre,
    )
    check_central_share(central_share)
    if not 0 <= seed < 2**32:
        raise UsageError(f"train.seed {seed}: 0 to 2^32 - 1")
    reading = checked(reading, "train.reading")
    augmentation = augmentation or Augmentation()
    if not isinstance(augmentation, Augmentation):
        raise UsageError(f"train.augmentation: @Augmentation(), not {augmentation!r}")

    # ---- Data: what there is, and which rows each step sees.
    index = load_index(data_dir, "train")
    val_index = _val_index(index.info)
    plan = _make_plan(make_plan, index, seed)

    # ---- Model and optimizer, on the devices.
    strategy = make_strategy()
    replicas = strategy.num_replicas_in_sync
    _check_divides(plan, replicas)
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = build_model()
        try:
            optimizer = make_optimizer()
            optimizer.build(model.trainable_variables)
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"train.make_optimizer: {error}") from error
    _check_triplets(triplets, model)
    image_size = int(model.input_shape[1])

    # ---- Where the run stands; one process at a time.
    os.makedirs(model_dir, exist_ok=True)
    lock = exclusive(os.path.join(model_dir, LOCK_FILE), f"model_dir {model_dir}")
    with lock, _stop() as stop, contextlib.ExitStack() as stack:
        claim_data(model_dir, index.info)
        checkpoints = Checkpoints(model_dir, model, optimizer)
        first_step = checkpoints.restore_latest()
        on_ready()
        telemetry = stack.enter_context(Telemetry(model_dir, first_step=first_step, steps=steps))
        _say_start(telemetry, strategy, plan, index, model, first_step, steps)
        if val_index is None:
            telemetry.line("no val split with two images of a class: the last model is kept")

        # ---- What reads, and what computes.
        index = reading.bring(index)
        records = reading.records(index)
        seen_as = functools.partial(
            Images,
            image_size=image_size,
            central_share=central_share,
            batch_size=EVALUATION_BATCH,
            damaged=reading.damaged,
            strategy=strategy,
        )
        val = None
        if val_index is not None:
            val_index = reading.bring(val_index)
            val = seen_as(val_index, reading.records(val_index))
        forward = forward_function(strategy, model)
        run_steps = make_loop(strategy, model, optimizer, triplets)
        step, evaluated_step = first_step, int(checkpoints.evaluated_step.numpy())
        while True:
            # ---- Look at val, and save.
            if (step % evaluate_every == 0 or step == steps) and evaluated_step < step:
                if val is not None:
                    metrics = measure(*embed(forward, val, "val"), val)
                    best = checkpoints.save_if_best(step, metrics.map_at_r)
                    telemetry.evaluation(step, numbers(metrics), "  (best so far)" if best else "")
                if plan.hard_share:
                    checkpoints.centres.assign(
                        class_centres(
                            forward,
                            seen_as(index, records),
                            plan,
                            images_per_centre=images_per_centre,
                        )
                    )
                evaluated_step = step
                checkpoints.save(step, evaluated_step=evaluated_step)
            if stop or step >= steps:
                break

            # ---- Train up to the next evaluation.
            goal = min(steps, (step // evaluate_every + 1) * evaluate_every)
            table = checkpoints.centres.numpy()
            centres = table if len(table) else None
            for chunk_start, chunk_steps in chunks(step, goal, plan.batch_size):
                if stop:
                    break
                iterator = _batches(
                    strategy,
                    index,
                    plan,
                    records,
                    first_step=chunk_start,
                    num_steps=chunk_steps,
                    image_size=image_size,
                    augmentation=augmentation,
                    centres=centres,
                )
                while step < chunk_start + chunk_steps and not stop:
                    num_steps = min(steps_per_loop, chunk_start + chunk_steps - step)
                    began = time.monotonic()
                    rows = functools.partial(_rows, plan, range(step, step + num_steps), centres)
                    with unreadable_named(index, rows):
                        loop = run_steps(iterator, num_steps)
                    seconds = time.monotonic() - began
                    step += num_steps
                    _check_finite(loop.statistics["loss"], step - num_steps + loop.finite_steps + 1)
                    if loop.replaced:
                        found = find_damaged(index, rows())
                        require_replaceable(found, loop.replaced, loop.black, reading.damaged)
                        for line in append_damaged(model_dir, found, loop.replaced):
                            telemetry.line(line)
                    telemetry.training(
                        step, _numbers(loop, num_steps * plan.batch_size / seconds, seconds)
                    )
            if stop:
                checkpoints.save(step, evaluated_step=evaluated_step)
                break
        if step < steps:
            telemetry.line(
                f"stopped after step {step:,} of {steps:,}, saved in {model_dir};"
                " the same command goes on from there"
            )
    return step >= steps


def _check_triplets(
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult], model: keras.Model
) -> None:
    """A wrong setting of the loss shows here, not inside the compiled loop."""
    try:
        result = triplets(tf.constant([0, 0, 1]), tf.eye(3, *model.output_shape[1:]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"train.triplets: {str(error).splitlines()[0]}") from error
    if not isinstance(result, TripletResult):
        raise UsageError(f"train.triplets returns {type(result).__name__}, not a TripletResult")


def _check_divides(plan: BatchPlan, replicas: int) -> None:
    if plan.batch_size % replicas:
        size = plan.images_per_class * replicas // math.gcd(plan.images_per_class, replicas)
        nearest = max(1, round(plan.batch_size / size)) * size // plan.images_per_class
        raise UsageError(
            f"batch of {plan.classes_per_batch} x {plan.images_per_class} images: not divisible by"
            f" {replicas} replicas; the nearest that is has classes_per_batch = {nearest}"
        )


def _make_plan(make_plan: Callable[..., BatchPlan], index: DatasetIndex, seed: int) -> BatchPlan:
    try:
        plan = make_plan(index, seed=seed)
    except TypeError as error:
        raise UsageError(f"train.make_plan: {str(error).splitlines()[0]}") from error
    if not isinstance(plan, BatchPlan):
        raise UsageError(f"train.make_plan returns {type(plan).__name__}, not a BatchPlan")
    return plan


def _val_index(info: DatasetInfo) -> DatasetIndex | None:
    if "val" not in info.num_images:
        return None
    index = load_index(info.directory, "val")
    return index if has_queries(index) else None


def _batches(
    strategy: tf.distribute.Strategy,
    index: DatasetIndex,
    plan: BatchPlan,
    records: Records,
    **arguments: Any,
) -> Iterator:
    """Each host's part of the batches; arguments as `train_batches`."""

    def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return train_batches(
            index,
            plan.for_host(context.input_pipeline_id, context.num_input_pipelines),
            records,
            replicas=context.num_replicas_in_sync // context.num_input_pipelines,
            **arguments,
        )

    return iter(strategy.distribute_datasets_from_function(of_host))


def _numbers(loop: Loop, images_per_second: float, seconds: float) -> dict[str, float]:
    numbers = {
        **loop.statistics,
        "damaged": loop.replaced,
        "images_per_second": images_per_second,
    }
    if loop.input_seconds is not None:
        numbers["input_share"] = loop.input_seconds / seconds
    return numbers


def _rows(plan: BatchPlan, steps: Iterable[int], centres: np.ndarray | None) -> np.ndarray:
    return np.concatenate([plan.batch(step, centres=centres) for step in steps])


def _check_finite(loss: float, step: int) -> None:
    """Step: the first whose loss is not finite, if there is one."""
    if not np.isfinite(loss):
        raise UsageError(
            f"the loss is {loss} in step {step}; what was saved before is kept; lower the"
            " learning rate, or look for damaged images"
        )


@contextlib.contextmanager
def _stop() -> Iterator["_Flag"]:
    """A flag that Ctrl+C and SIGTERM raise; a second Ctrl+C stops at once."""
    flag = _Flag()

    def raise_flag(number: int, _: object) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.raised = True
        # Not print: this may have come in the middle of another one.
        os.write(2, b"\nfinishing the steps in hand; Ctrl+C again stops at once\n")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, raise_flag) for number in signals]
    try:
        yield flag
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class _Flag:
    raised = False

    def __bool__(self) -> bool:
        return self.raised


def _say_start(
    telemetry: Telemetry,
    strategy: tf.distribute.Strategy,
    plan: BatchPlan,
    index: DatasetIndex,
    model: keras.Model,
    first_step: int,
    steps: int,
) -> None:
    """Every derived size, once, before the first step."""
    replicas = strategy.num_replicas_in_sync
    skipped = f", {plan.num_skipped} classes of one image left out" if plan.num_skipped else ""
    name = type(strategy).__name__.removesuffix("V1")
    telemetry.line(f"devices: {name}, {replicas} replica{'s' if replicas > 1 else ''}")
    telemetry.line(
        f"data: {len(index):,} images of {plan.num_classes + plan.num_skipped:,} classes in"
        f" {index.info.directory}{skipped}"
    )
    telemetry.line(
        f"batch: {plan.classes_per_batch} classes x {plan.images_per_class} images ="
        f" {plan.batch_size}, {plan.batch_size // replicas} a replica"
    )
    trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
    telemetry.line(f"model: {model.count_params():,} parameters, {trainable:,} trained")
    passes = steps / plan.steps_per_pass
    telemetry.line(f"steps: {steps:,}, {passes:.1f} passes over the classes")
    if first_step >= steps:
        telemetry.line(f"step {first_step:,} is reached already: nothing to train")
    elif first_step:
        telemetry.line(f"going on from step {first_step:,}")
