"""What a run refuses, and what it says, before its first step."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from preprocessing.errors import UsageError
from preprocessing.index import DatasetIndex
from trainer.batching import BatchPlan
from trainer.losses import TripletResult
from trainer.strategy import devices_of


def check_triplets(
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult], model: keras.Model
) -> None:
    """A wrong setting of the loss shows here, not inside the compiled loop."""
    try:
        result = triplets(tf.constant([0, 0, 1]), tf.eye(3, *model.output_shape[1:]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"train.triplets: {str(error).splitlines()[0]}") from error
    if not isinstance(result, TripletResult):
        raise UsageError(f"train.triplets returns {type(result).__name__}, not a TripletResult")


def check_divides(plan: BatchPlan, replicas: int, microbatches: int) -> None:
    """Raises UsageError unless each replica's microbatches are of one size."""
    parts = replicas * microbatches
    if plan.batch_size % parts == 0:
        return
    of = f"{replicas} replicas" if replicas > 1 else ""
    of += " of " if replicas > 1 and microbatches > 1 else ""
    of += f"{microbatches} microbatches" if microbatches > 1 else ""
    unit = parts // math.gcd(plan.images_per_class, parts)
    nearest = max(1, round(plan.classes_per_batch / unit)) * unit
    if nearest > plan.num_classes:
        nearest = plan.num_classes // unit * unit
    if nearest < 2:
        images = max(1, round(plan.images_per_class / parts)) * parts
        advice = (
            f"no number of classes up to {plan.num_classes} is, at {plan.images_per_class} images"
            f" each; images_per_class = {images} would be"
        )
    else:
        advice = f"the nearest that is has classes_per_batch = {nearest}"
    raise UsageError(
        f"batch of {plan.classes_per_batch} x {plan.images_per_class} images: not divisible by"
        f" {of}; {advice}"
    )


def check_compiles(model: keras.Model, replicas: int, microbatches: int, jit_compile: bool) -> None:
    """Raises UsageError where batch norm would have to talk to other replicas but cannot."""
    if replicas == 1 or not (jit_compile or microbatches > 1):
        return
    if any(getattr(layer, "synchronized", False) for layer in model._flatten_layers()):
        option = "train.jit_compile" if jit_compile else "train.microbatches"
        raise UsageError(
            f"{option}: synchronised batch norm does not work with it on {replicas} replicas;"
            " set build_model.freeze_batch_norm = True"
        )


def check_same_weights(model: keras.Model, shown: keras.Model) -> None:
    """Raises UsageError unless the model that is trained on crops has the weights of the other."""
    shapes = [[variable.shape for variable in each.variables] for each in (model, shown)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"train.crop_size {model.input_shape[1]}: the backbone's weights depend on the size of"
            f" its images, {shown.input_shape[1]}; leave it out"
        )


def say_start(
    say: Callable[[str], None],
    strategy: tf.distribute.Strategy,
    plan: BatchPlan,
    index: DatasetIndex,
    model: keras.Model,
    first_step: int,
    steps: int,
    microbatches: int,
) -> None:
    """Every derived size, once, before the first step."""
    replicas = strategy.num_replicas_in_sync
    few = f"of fewer than {plan.min_images} images" if plan.min_images > 2 else "of one image"
    skipped = f", {plan.num_skipped} classes {few} left out" if plan.num_skipped else ""
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
