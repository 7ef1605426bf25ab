"""Trains a model: checks the settings, opens the run, builds, restores, and starts the loop."""

import contextlib
import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.distributed.agreement import (
    any_worker,
    is_chief,
    require_agreement,
    require_same,
    worker_index_and_count,
)
from trainer.distributed.lost_workers import naming_lost_workers
from trainer.distributed.strategy import make_deterministic
from trainer.evaluation.inference import SplitImages
from trainer.evaluation.measure import has_queries
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.folder import open_run
from trainer.runs.stop_signals import on_signals
from trainer.training.eval_model import EvalModel
from trainer.training.gradients import Gradients, make_gradients
from trainer.training.optimizers import Optimizers
from trainer.training.outer_loop import OuterLoop
from trainer.training.preflight import (
    check_compiles,
    check_divides,
    check_same_weights,
    check_triplets,
    checked_plan,
    say_kept,
    say_start,
)
from trainer.training.settings import TrainSettings
from trainer.training.telemetry import Telemetry
from trainer.training.train_loop import TrainLoop
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, DatasetInfo, load_index

EVALUATION_BATCH = 128


def train(settings: TrainSettings) -> bool:
    """Trains a model on the train split, evaluates it on the val split, and resumes a stopped run.

    Returns:
      Whether the run has reached its end. False after Ctrl+C or SIGTERM, upon which the steps in
      hand are finished and saved.

    Raises:
      UsageError: the data, the batch or the checkpoint do not fit, or the run diverges, in which
        case the diverged weights are not saved.
      WorkerLostError: another process of the same training does not answer.
    """
    # ---- Plan the batches.
    if settings.deterministic:
        make_deterministic()
    index = load_index(settings.data_dir, "train")
    val_index = _val_index(index.info)
    plan = checked_plan(settings.make_plan, index, settings.seed)

    strategy = settings.make_strategy()
    with contextlib.ExitStack() as stack:
        # ---- Build the model and its optimizers on the devices.
        stack.enter_context(naming_lost_workers(strategy))
        require_agreement(strategy, settings.configuration.shared, index.info)
        check_divides(plan, strategy.num_replicas_in_sync, settings.microbatches)
        keras.utils.set_random_seed(settings.seed)
        with strategy.scope():
            model, eval_size_model = _build(settings)
            optimizers = _optimizers(settings, model)
        gradients = _gradients(settings, strategy, model)

        # ---- Open the run, and restore or start it.
        # Before the first step there is nothing to finish, so a signal may end a process that is
        # alone. Several workers have to stop together.
        is_alone = worker_index_and_count(strategy)[1] == 1
        stop = stack.enter_context(on_signals(at_once=is_alone))
        writes = is_chief(strategy)
        run = open_run(settings.model_dir, index.info, settings.configuration, writes=writes)
        stack.enter_context(run)
        state = optimizers.variables, optimizers.averages
        keep = settings.keep
        checkpoints = Checkpoints(settings.model_dir, model, *state, keep=keep, writes=writes)
        first_step = _restore_or_start(settings, strategy, checkpoints, model, optimizers)
        if writes:
            settings.configuration.save(settings.model_dir)
        telemetry = stack.enter_context(_telemetry(settings, checkpoints, writes))
        say_start(telemetry.line, settings, strategy, plan, index, model, first_step)
        eval_model = EvalModel(strategy, model, eval_size_model, optimizers)
        if plan.hard_share and checkpoints.forget_other_centres(plan.num_classes):
            telemetry.line("the classes have changed: no hard batches until the next evaluation")
        say_kept(telemetry.line, settings, checkpoints, val_index, whitens=eval_model.whitens)

        # ---- Hand over to the outer loop.
        images = functools.partial(_images, settings, eval_model, strategy)
        train_loop = TrainLoop(
            model=model,
            gradients=gradients,
            optimizers=optimizers,
            images=images(index),
            plan=plan,
            augmentation=settings.augmentation,
            steps_per_loop=settings.steps_per_loop,
            telemetry=telemetry,
            model_dir=settings.model_dir if writes else None,
            should_stop=lambda: any_worker(strategy, stop.asked),
        )
        val = None if val_index is None else images(val_index)
        if not first_step and settings.init_from is None:
            eval_model.initialize_head(train_loop.images, plan.class_rows)
        stop.at_once = False
        return OuterLoop(train_loop, eval_model, checkpoints, val, settings).run(first_step)


def _val_index(info: DatasetInfo) -> DatasetIndex | None:
    """Returns the index of the val split; None if nothing can be evaluated on it."""
    if "val" not in info.num_images:
        return None
    index = load_index(info.directory, "val")
    return index if has_queries(index, group=info.group) else None


def _build(settings: TrainSettings) -> tuple[keras.Model, keras.Model]:
    """Makes the model that is trained on crops, and the model for whole images."""
    if settings.crop_size is None:
        model = settings.build_model()
        return model, model
    models = settings.build_model(image_size=settings.crop_size), settings.build_model()
    check_same_weights(*models)
    return models


def _optimizers(settings: TrainSettings, model: keras.Model) -> Optimizers:
    return Optimizers(
        model,
        settings.make_optimizer,
        settings.make_head_optimizer,
        clip_norm=settings.clip_norm,
        average_decay=settings.average_decay,
    )


def _gradients(
    settings: TrainSettings, strategy: tf.distribute.Strategy, model: keras.Model
) -> Callable[[tf.Tensor, tf.Tensor], Gradients]:
    """Checks that the gradients can be computed, and returns the function that does so."""
    microbatches, jit_compile = settings.microbatches, settings.jit_compile
    check_compiles(model, strategy.num_replicas_in_sync, microbatches, jit_compile)
    check_triplets(settings.triplets, model)
    return make_gradients(
        model, settings.triplets, microbatches=microbatches, jit_compile=jit_compile
    )


def _restore_or_start(
    settings: TrainSettings,
    strategy: tf.distribute.Strategy,
    checkpoints: Checkpoints,
    model: keras.Model,
    optimizers: Optimizers,
) -> int:
    """Restores the newest checkpoint, or else the best model of another run if there is one.

    Returns:
      The number of steps that are done.
    """
    first_step, init_from = checkpoints.restore_latest(), settings.init_from
    require_same(strategy, first_step, f"the last step saved in model_dir {settings.model_dir}")
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
    except UsageError as error:
        raise UsageError(f"train.init_from {init_from}: {error}") from error


def _telemetry(settings: TrainSettings, checkpoints: Checkpoints, writes: bool) -> Telemetry:
    return Telemetry(
        settings.model_dir,
        first_step=int(checkpoints.step),
        evaluated_step=int(checkpoints.evaluated_step),
        steps=settings.steps,
        writes=writes,
    )


def _images(
    settings: TrainSettings,
    eval_model: EvalModel,
    strategy: tf.distribute.Strategy,
    index: DatasetIndex,
) -> SplitImages:
    """Brings the shards of a split to where they are read, and returns its images."""
    reading = settings.reading
    index = reading.bring(index)
    return SplitImages(
        index,
        reading.records(index),
        image_size=eval_model.image_size,
        central_share=settings.central_share,
        batch_size=EVALUATION_BATCH,
        damaged=reading.damaged,
        strategy=strategy,
    )
