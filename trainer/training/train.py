"""Trains a model: checks the settings, opens the run, builds, restores, and starts the loop."""

import contextlib
import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.data.augmentation import Augmentation
from trainer.data.reading import Reading, checked
from trainer.distributed.agreement import (
    any_worker,
    is_chief,
    require_agreement,
    require_same,
    worker_index_and_count,
)
from trainer.distributed.lost_workers import naming_lost_workers
from trainer.distributed.strategy import make_deterministic
from trainer.distributed.strategy import make_strategy as default_strategy
from trainer.evaluation.inference import SplitImages
from trainer.evaluation.measure import has_queries
from trainer.runs.checkpoints import Checkpoints, MisfitError
from trainer.runs.folder import RunConfig, open_run
from trainer.runs.stop_signals import on_signals
from trainer.training.eval_model import EvalModel
from trainer.training.gradients import Gradients, TripletLoss, make_gradients
from trainer.training.optimizers import MakeOptimizer, Optimizers
from trainer.training.outer_loop import OuterLoop, Schedule
from trainer.training.preflight import (
    MakePlan,
    check_compiles,
    check_divides,
    check_same_weights,
    check_settings,
    check_triplets,
    checked_augmentation,
    checked_plan,
    say_kept,
    say_start,
)
from trainer.training.telemetry import Telemetry
from trainer.training.train_loop import TrainLoop
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, DatasetInfo, load_index

EVALUATION_BATCH = 128
NO_CONFIG = RunConfig()


def train(
    *,
    data_dir: str,
    model_dir: str,
    build_model: Callable[..., keras.Model],
    triplets: TripletLoss,
    make_optimizer: MakeOptimizer,
    make_plan: MakePlan,
    steps: int,
    make_head_optimizer: MakeOptimizer | None = None,
    clip_norm: float | None = None,
    average_decay: float | None = None,
    microbatches: int = 1,
    jit_compile: bool = False,
    init_from: str | None = None,
    augmentation: Augmentation | None = None,
    crop_size: int | None = None,
    reading: Reading | None = None,
    central_share: float = 1.0,
    images_per_centre: int = 8,
    evaluate_every: int = 100,
    keep_best: bool = True,
    patience: int | None = None,
    keep: int = 2,
    steps_per_loop: int = 10,
    seed: int = 0,
    deterministic: bool = False,
    make_strategy: Callable[[], tf.distribute.Strategy] = default_strategy,
    configuration: RunConfig = NO_CONFIG,
) -> bool:
    """Trains a model on the train split, evaluates it on the val split, and resumes a stopped run.

    Args:
      data_dir: folder of a finished data set.
      model_dir: folder of the run. If a run lies there, it is resumed.
      build_model: makes the model, [batch, S, S, 3] uint8 -> [batch, D].
      triplets: the loss, a function of labels [b] and embeddings [b, D]; see
        `tripletmill.losses.triplet`.
      make_optimizer: makes the optimizer.
      make_plan: makes the plan of the batches from (index, seed=seed): `BatchPlan` with its other
        arguments set.
      steps: optimizer steps of the whole run.
      make_head_optimizer: makes a separate optimizer for the projection to the embedding; None if
        `make_optimizer` is for the projection too.
      clip_norm: largest norm of the gradient of all weights together; None for no limit.
      average_decay: decay of a moving average of the weights, 0 to below 1. If it is set, the
        averaged weights are evaluated and kept.
      microbatches: M, the number of parts of each replica's batch that are embedded one after the
        other. The loss is still that of the whole batch, but the memory is that of a part
        (`trainer.training.gradients`).
      jit_compile: whether XLA compiles the model's forward and backward pass.
      init_from: folder of an earlier run. A new run begins with the weights of its best model.
      augmentation: how crops are drawn.
      crop_size: side of the crops in pixels; None for the model's image_size. Things in a random
        crop look larger than in a whole image, so smaller crops train not only faster, but often
        better (Touvron et al.: Fixing the train-test resolution discrepancy, 2019). The backbone's
        weights must fit any image size.
      reading: how records are read.
      central_share: side of the central square that is kept of a val image, as a share of the
        image's short side, above 0 to 1.
      images_per_centre: for hard batches, number of images of each class whose mean embedding is
        the centre of the class.
      evaluate_every: steps between evaluations on val.
      keep_best: whether the run keeps the model with the highest MAP@R on val; otherwise it keeps
        the last one. The last one is the better choice if val has few classes, or classes that are
        more like those of train than new classes will be.
      patience: number of evaluations without a higher MAP@R after which the run ends; None to
        never end it early.
      keep: how many of the latest checkpoints are kept, in addition to the best model.
      steps_per_loop: steps in one call of TensorFlow.
      seed: seed of the weights, the batches and the crops, 0 to 2^32 - 1.
      deterministic: whether two runs have the same weights bit for bit on a CPU, even if one of
        them was interrupted. Otherwise they differ as two seeds do.
      make_strategy: makes the distribution strategy.
      configuration: the configuration as text. It is saved in model_dir, and several workers
        compare what they must have in common.

    Returns:
      Whether the run has reached its end. False after Ctrl+C or SIGTERM, upon which the steps in
      hand are finished and saved.

    Raises:
      UsageError: a setting is wrong; the data, the batch or the checkpoint do not fit; or the run
        diverges, in which case the diverged weights are not saved.
      WorkerLostError: another process of the same training does not answer.
    """
    # ---- Check the settings, and plan the batches.
    schedule = Schedule(steps, evaluate_every, keep_best, patience, images_per_centre)
    counts = {"steps_per_loop": steps_per_loop, "microbatches": microbatches, "keep": keep}
    check_settings(model_dir, schedule, counts, crop_size, central_share, seed)
    reading, augmentation = checked(reading, "train.reading"), checked_augmentation(augmentation)
    if deterministic:
        make_deterministic()
    index = load_index(data_dir, "train")
    val_index = _val_index(index.info)
    plan = checked_plan(make_plan, index, seed)

    strategy = make_strategy()
    with contextlib.ExitStack() as stack:
        # ---- Build the model and its optimizers on the devices.
        stack.enter_context(naming_lost_workers(strategy))
        require_agreement(strategy, configuration.shared, index.info)
        check_divides(plan, strategy.num_replicas_in_sync, microbatches)
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            model, eval_size_model = _build(build_model, crop_size)
            optimizers = Optimizers(
                model,
                make_optimizer,
                make_head_optimizer,
                clip_norm=clip_norm,
                average_decay=average_decay,
            )
        gradients = _gradients(strategy, model, triplets, microbatches, jit_compile)

        # ---- Open the run, and restore or start it.
        stop = stack.enter_context(on_signals(at_once=_is_alone(strategy)))
        writes = is_chief(strategy)
        stack.enter_context(open_run(model_dir, index.info, configuration, writes=writes))
        state = optimizers.variables, optimizers.averages
        checkpoints = Checkpoints(model_dir, model, *state, keep=keep, writes=writes)
        first_step = _restore_or_start(strategy, checkpoints, model, optimizers, init_from)
        if writes:
            configuration.save(model_dir)
        telemetry = stack.enter_context(_telemetry(model_dir, checkpoints, steps, writes))
        say_start(telemetry.line, strategy, plan, index, model, first_step, steps, microbatches)
        eval_model = EvalModel(strategy, model, eval_size_model, optimizers)
        if plan.hard_share and checkpoints.forget_other_centres(plan.num_classes):
            telemetry.line("the classes have changed: no hard batches until the next evaluation")
        say_kept(telemetry.line, checkpoints, schedule, val_index, whitens=eval_model.whitens)

        # ---- Hand over to the outer loop.
        images = functools.partial(_images, reading, central_share, eval_model, strategy)
        train_images = images(index)
        val = None if val_index is None else images(val_index)
        train_loop = TrainLoop(
            model=model,
            gradients=gradients,
            optimizers=optimizers,
            images=train_images,
            plan=plan,
            augmentation=augmentation,
            steps_per_loop=steps_per_loop,
            telemetry=telemetry,
            model_dir=model_dir if writes else None,
            should_stop=lambda: any_worker(strategy, stop.asked),
        )
        if not first_step and init_from is None:
            eval_model.initialize_head(train_images, plan.class_rows)
        stop.at_once = False
        outer = OuterLoop(train_loop, eval_model, checkpoints, val, schedule, model_dir)
        return outer.run(first_step)


def _val_index(info: DatasetInfo) -> DatasetIndex | None:
    """Returns the index of the val split; None if nothing can be evaluated on it."""
    if "val" not in info.num_images:
        return None
    index = load_index(info.directory, "val")
    return index if has_queries(index, group=info.group) else None


def _build(
    build_model: Callable[..., keras.Model], crop_size: int | None
) -> tuple[keras.Model, keras.Model]:
    """Makes the model that is trained on crops, and the model for whole images."""
    if crop_size is None:
        model = build_model()
        return model, model
    models = build_model(image_size=crop_size), build_model()
    check_same_weights(*models)
    return models


def _gradients(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    triplets: TripletLoss,
    microbatches: int,
    jit_compile: bool,
) -> Callable[[tf.Tensor, tf.Tensor], Gradients]:
    """Checks that the gradients can be computed, and returns the function that does so."""
    check_compiles(model, strategy.num_replicas_in_sync, microbatches, jit_compile)
    check_triplets(triplets, model)
    return make_gradients(model, triplets, microbatches=microbatches, jit_compile=jit_compile)


def _is_alone(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process trains alone.

    Before the first step there is nothing to finish, so a signal may end a process that is alone.
    Several workers have to stop together.
    """
    return worker_index_and_count(strategy)[1] == 1


def _restore_or_start(
    strategy: tf.distribute.Strategy,
    checkpoints: Checkpoints,
    model: keras.Model,
    optimizers: Optimizers,
    init_from: str | None,
) -> int:
    """Restores the newest checkpoint, or else the best model of another run if there is one.

    Returns:
      The number of steps that are done.
    """
    first_step = checkpoints.restore_latest()
    require_same(strategy, first_step, f"the last step saved in model_dir {checkpoints.model_dir}")
    if init_from is not None and not first_step:
        init_step = _restore_init(init_from, model)
        optimizers.start_averages()
        require_same(strategy, init_step, f"the step of the model in train.init_from {init_from}")
    return first_step


def _restore_init(init_from: str, model: keras.Model) -> int:
    """Restores the best model of another run, and returns its step."""
    if not Checkpoints.exist(init_from):
        raise UsageError(f"train.init_from {init_from}: no checkpoint there")
    try:
        return Checkpoints(init_from, model, writes=False).restore_best()
    except MisfitError as error:
        raise UsageError(
            f"train.init_from {init_from}: checkpoint {error.path} {error.problem}; set build_model"
            " as in that run, or leave train.init_from out"
        ) from error
    except UsageError as error:
        raise UsageError(f"train.init_from {init_from}: {error}") from error


def _telemetry(model_dir: str, checkpoints: Checkpoints, steps: int, writes: bool) -> Telemetry:
    return Telemetry(
        model_dir,
        first_step=int(checkpoints.step),
        evaluated_step=int(checkpoints.evaluated_step),
        steps=steps,
        writes=writes,
    )


def _images(
    reading: Reading,
    central_share: float,
    eval_model: EvalModel,
    strategy: tf.distribute.Strategy,
    index: DatasetIndex,
) -> SplitImages:
    """Brings the shards of a split to where they are read, and returns its images."""
    index = reading.bring(index)
    return SplitImages(
        index,
        reading.records(index),
        image_size=eval_model.image_size,
        central_share=central_share,
        batch_size=EVALUATION_BATCH,
        damaged=reading.damaged,
        strategy=strategy,
    )
