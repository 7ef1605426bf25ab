"""Before the first step: checks of what the settings make, and the lines that describe the run."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.data.batch_plan import BatchPlan
from trainer.distributed.strategy import devices_of
from trainer.runs.checkpoints import Checkpoints
from trainer.training.gradients import TripletLoss
from trainer.training.settings import MakePlan, TrainSettings
from trainer.workarounds import all_layers
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex
from tripletmill.losses.triplet import TripletResult


def checked_plan(make_plan: MakePlan, index: DatasetIndex, seed: int) -> BatchPlan:
    """Makes the plan of the batches; raises UsageError if `make_plan` makes something else."""
    try:
        plan = make_plan(index, seed=seed)
    except TypeError as error:
        raise UsageError(f"train.make_plan: {str(error).splitlines()[0]}") from error
    if not isinstance(plan, BatchPlan):
        raise UsageError(f"train.make_plan returns {type(plan).__name__}, not a BatchPlan")
    return plan


def check_triplets(triplets: TripletLoss, model: keras.Model) -> None:
    """Raises UsageError if the loss cannot be computed.

    Without this check, a wrong setting would be an error inside the compiled training step.
    """
    try:
        result = triplets(tf.constant([0, 0, 1]), tf.eye(3, *model.output_shape[1:]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"train.triplets: {str(error).splitlines()[0]}") from error
    if not isinstance(result, TripletResult):
        raise UsageError(f"train.triplets returns {type(result).__name__}, not a TripletResult")


def check_divides(plan: BatchPlan, replicas: int, microbatches: int) -> None:
    """Raises UsageError unless all microbatches of all replicas have the same size."""
    num_parts = replicas * microbatches
    if plan.batch_size % num_parts:
        unit = num_parts // math.gcd(plan.images_per_class, num_parts)
        raise UsageError(
            f"batch of {plan.classes_per_batch} x {plan.images_per_class} images: not divisible by"
            f" {replicas} replicas x {microbatches} microbatches; make BatchPlan.classes_per_batch"
            f" a multiple of {unit}, or BatchPlan.images_per_class a multiple of {num_parts}"
        )


def check_compiles(model: keras.Model, replicas: int, microbatches: int, jit_compile: bool) -> None:
    """Raises UsageError if batch norm has to be synchronised between replicas but cannot be."""
    if replicas == 1 or not (jit_compile or microbatches > 1):
        return
    if any(getattr(layer, "synchronized", False) for layer in all_layers(model)):
        option = "train.jit_compile" if jit_compile else "train.microbatches"
        raise UsageError(
            f"{option}: synchronised batch norm does not work with it on {replicas} replicas;"
            " set build_model.freeze_batch_norm = True"
        )


def check_same_weights(model: keras.Model, eval_size_model: keras.Model) -> None:
    """Raises UsageError unless the model for crops has weights of the other model's shapes."""
    shapes = [[variable.shape for variable in m.variables] for m in (model, eval_size_model)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"train.crop_size {model.input_shape[1]}: the backbone's weights depend on the size of"
            f" its images, {eval_size_model.input_shape[1]}; leave train.crop_size out"
        )


def say_start(
    say: Callable[[str], None],
    settings: TrainSettings,
    strategy: tf.distribute.Strategy,
    plan: BatchPlan,
    index: DatasetIndex,
    model: keras.Model,
    first_step: int,
) -> None:
    """Says the sizes that follow from the settings, and the step that the run begins with."""
    steps, microbatches = settings.steps, settings.microbatches
    replicas = strategy.num_replicas_in_sync
    few = f" classes of fewer than {plan.min_images} images left out"
    skipped = f", {plan.num_skipped}{few}" if plan.num_skipped else ""
    name = type(strategy).__name__.removesuffix("V1")
    kinds = {tf.DeviceSpec.from_string(each).device_type for each in devices_of(strategy)}
    on = f" ({', '.join(sorted(map(str, kinds)))})" if kinds else ""
    say(f"devices: {name}, {replicas} replica{'s' if replicas > 1 else ''}{on}")
    say(
        f"data: {len(index):,} images of {plan.num_classes + plan.num_skipped:,} classes in"
        f" {index.info.directory}{skipped}"
    )
    parts = f", in {microbatches} microbatches" if microbatches > 1 else ""
    say(
        f"batch: {plan.classes_per_batch} classes x {plan.images_per_class} images ="
        f" {plan.batch_size}, {plan.batch_size // replicas} a replica{parts}"
    )
    trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
    say(f"model: {model.count_params():,} parameters, {trainable:,} trained")
    say(f"steps: {steps:,}, {steps / plan.steps_per_pass:.1f} passes over the classes")
    if first_step >= steps:
        say(f"step {first_step:,} is reached already: nothing to train")
    elif first_step:
        say(f"going on from step {first_step:,}")


def say_kept(
    say: Callable[[str], None],
    settings: TrainSettings,
    checkpoints: Checkpoints,
    val_index: DatasetIndex | None,
    *,
    whitens: bool,
) -> None:
    """Says if the run keeps another model than the best of this training on val."""
    if val_index is None:
        say("no val split with two images of a class: the last model is kept")
    elif not settings.keep_best and checkpoints.best_step and not whitens:
        say(
            f"the model of step {checkpoints.best_step:,}, the best on val before"
            " train.keep_best was False, stays the model of this run"
        )
