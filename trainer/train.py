"""The training loop."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError, require_positive
from preprocessing.index import DatasetIndex, DatasetInfo, load_index
from preprocessing.storage import exclusive, require_local
from trainer.batching import BatchPlan
from trainer.checkpoints import Checkpoints, claim_data
from trainer.evaluate import (
    ImageReader,
    check_central_share,
    forward_function,
    has_queries,
    measure,
    numbers,
)
from trainer.input import Augmentation, chunks, train_batches
from trainer.losses import TripletResult
from trainer.strategy import make_strategy as default_strategy
from trainer.telemetry import Telemetry

STATISTICS = ("loss", "active", "positive_distance", "negative_distance")
EVALUATION_BATCH = 128
LOCK_FILE = ".lock"


def train(
    *,
    data_dir: str,
    model_dir: str,
    build_model: Callable[[], keras.Model],
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult],
    make_optimizer: Callable[[], keras.optimizers.Optimizer],
    classes_per_batch: int,
    images_per_class: int,
    steps: int,
    augmentation: Augmentation | None = None,
    central_share: float = 1.0,
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
      classes_per_batch: P of a global batch.
      images_per_class: K of a global batch.
      steps: optimizer steps of the whole run.
      augmentation: how crops are drawn.
      central_share: for val, side of the central square that is kept, as a share of the short side.
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
    require_local(data_dir, "data_dir")
    require_local(model_dir, "model_dir")
    require_positive(
        "train", steps=steps, evaluate_every=evaluate_every, steps_per_loop=steps_per_loop
    )
    check_central_share(central_share)
    if not 0 <= seed < 2**32:
        raise UsageError(f"train.seed {seed}: 0 to 2^32 - 1")
    augmentation = augmentation or Augmentation()
    if not isinstance(augmentation, Augmentation):
        raise UsageError(f"train.augmentation: @Augmentation(), not {augmentation!r}")

    # ---- Data: what there is, and which rows each step sees.
    train_index = load_index(data_dir, "train")
    plan = BatchPlan(
        train_index.label,
        classes_per_batch=classes_per_batch,
        images_per_class=images_per_class,
        seed=seed,
    )

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
    val = _val_reader(train_index.info, image_size, central_share)

    # ---- Where the run stands; one process at a time.
    os.makedirs(model_dir, exist_ok=True)
    lock = exclusive(os.path.join(model_dir, LOCK_FILE), f"model_dir {model_dir}")
    with lock, _stop() as stop, contextlib.ExitStack() as stack:
        claim_data(model_dir, train_index.info)
        checkpoints = Checkpoints(model_dir, model, optimizer)
        first_step = checkpoints.restore_latest()
        on_ready()
        telemetry = stack.enter_context(Telemetry(model_dir, first_step=first_step, steps=steps))
        _say_start(telemetry, strategy, plan, train_index, model, first_step, steps)
        if val is None:
            telemetry.line("no val split with two images of a class: the last model is kept")
        forward = forward_function(model)
        run_steps = _make_loop(strategy, model, optimizer, triplets)
        step, evaluated_step = first_step, int(checkpoints.evaluated_step.numpy())
        while True:
            # ---- Look at val, and save.
            if (step % evaluate_every == 0 or step == steps) and evaluated_step < step:
                if val is not None:
                    metrics = measure(forward, val, "val")
                    best = checkpoints.save_if_best(step, metrics.map_at_r)
                    telemetry.evaluation(step, numbers(metrics), "  (best so far)" if best else "")
                evaluated_step = step
                checkpoints.save(step, evaluated_step=evaluated_step)
            if stop or step >= steps:
                break

            # ---- Train up to the next evaluation.
            goal = min(steps, (step // evaluate_every + 1) * evaluate_every)
            for chunk_start, chunk_steps in chunks(step, goal, plan.batch_size):
                if stop:
                    break
                batches = train_batches(
                    train_index,
                    plan,
                    first_step=chunk_start,
                    num_steps=chunk_steps,
                    image_size=image_size,
                    augmentation=augmentation,
                    replicas=replicas,
                )
                iterator = iter(
                    strategy.distribute_datasets_from_function(lambda _, batches=batches: batches)
                )
                while step < chunk_start + chunk_steps and not stop:
                    num_steps = min(steps_per_loop, chunk_start + chunk_steps - step)
                    began = time.monotonic()
                    means = run_steps(iterator, tf.constant(num_steps))
                    values = {name: float(value) for name, value in means.items()}
                    seconds = time.monotonic() - began
                    step += num_steps
                    finite_steps = int(values.pop("finite_steps"))
                    _check_finite(values["loss"], step - num_steps + finite_steps + 1)
                    images_per_second = num_steps * plan.batch_size / seconds
                    telemetry.training(step, {**values, "images_per_second": images_per_second})
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


def _val_reader(info: DatasetInfo, image_size: int, central_share: float) -> ImageReader | None:
    if "val" not in info.num_images:
        return None
    index = load_index(info.directory, "val")
    if not has_queries(index):
        return None
    return ImageReader(index, image_size, central_share, EVALUATION_BATCH)


def _make_loop(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult],
) -> Callable[[Iterator, tf.Tensor], Mapping[str, tf.Tensor]]:
    """A function (iterator, number of steps) -> means of the statistics, on all replicas.

    And finite_steps, how many steps went by before the loss was not finite.
    """

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            result = triplets(labels, model(images, training=True))
        gradients = tape.gradient(result.loss, model.trainable_variables)
        # Keras sums the gradients over replicas, as the replicas' shares of the loss ask for.
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        statistics = result.statistics()
        return tf.stack([tf.cast(statistics[name], tf.float32) for name in STATISTICS])

    @tf.function
    def run_steps(iterator: Iterator, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        total, finite_steps = tf.zeros([len(STATISTICS)]), tf.constant(0)
        for _ in tf.range(num_steps):
            shares = strategy.run(replica_step, args=next(iterator))
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)
            finite_steps += tf.cast(tf.math.is_finite(total[0]), tf.int32)
        means = tf.unstack(total / tf.cast(num_steps, tf.float32))
        return {**dict(zip(STATISTICS, means, strict=True)), "finite_steps": finite_steps}

    return run_steps


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
