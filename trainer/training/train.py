"""The training loop."""

import contextlib
import functools
import os
import shlex
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan
from trainer.data.image_ops import check_central_share
from trainer.data.reading import Reading, checked
from trainer.distributed.agreement import (
    any_worker,
    broadcast_from_chief,
    is_chief,
    require_agreement,
    require_same,
    worker_index_and_count,
)
from trainer.distributed.lost_workers import naming_lost_workers
from trainer.distributed.strategy import make_deterministic
from trainer.distributed.strategy import make_strategy as default_strategy
from trainer.evaluation.inference import SplitImages, embed
from trainer.evaluation.measure import Embedded, has_queries, measure
from trainer.runs.checkpoints import Checkpoints, MisfitError
from trainer.runs.folder import claim_data
from trainer.runs.stop_signals import on_signals
from trainer.training.class_centres import class_centres
from trainer.training.eval_model import EvalModel
from trainer.training.gradients import make_gradients
from trainer.training.optimizers import MakeOptimizer, Optimizers
from trainer.training.preflight import (
    check_compiles,
    check_divides,
    check_same_weights,
    check_triplets,
    say_start,
)
from trainer.training.telemetry import Telemetry
from trainer.training.train_loop import TrainLoop
from trainer.training.train_step import make_train_steps
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats.index import DatasetIndex, DatasetInfo, load_index
from tripletmill.losses.triplet import TripletResult
from tripletmill.storage.storage import exclusive, require_local

EVALUATION_BATCH = 128
LOCK_FILE = ".lock"


def train(
    *,
    data_dir: str,
    model_dir: str,
    build_model: Callable[..., keras.Model],
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult],
    make_optimizer: MakeOptimizer,
    make_plan: Callable[..., BatchPlan],
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
    before_restoring: Callable[[], None] = lambda: None,
    configuration: str = "",
    on_ready: Callable[[], None] = lambda: None,
) -> bool:
    """Trains a model on the train split, watching the val split, and resumes where it stopped.

    Args:
      data_dir: a finished data set.
      model_dir: folder of the run; a run that lies there goes on.
      build_model: makes the model, [batch, S, S, 3] uint8 -> [batch, D].
      triplets: the loss, of labels [b] and embeddings [b, D]; see `tripletmill.losses.triplet`.
      make_optimizer: makes the optimizer.
      make_plan: of (index, seed=seed), makes the plan of the batches: `BatchPlan` with the rest.
      steps: optimizer steps of the whole run.
      make_head_optimizer: makes that of the embedding's projection, where it has one of its own.
      clip_norm: largest norm of the gradient of all weights together.
      average_decay: of a moving average of the weights, which is what is evaluated and kept.
      microbatches: M, parts of each replica's batch that are embedded one after the other; the
        loss is that of the whole batch, the memory that of a part (`trainer.training.gradients`).
      jit_compile: whether XLA compiles the model's forward and backward pass.
      init_from: folder of an earlier run; a new run begins with the weights of its best model.
      augmentation: how crops are drawn.
      crop_size: side of the crops, pixels; None for the model's image_size. Things in a random crop
        look larger than in a whole image, so smaller crops train not only faster, but often better
        (Touvron et al.: Fixing the train-test resolution discrepancy, 2019). For backbones whose
        weights fit any size.
      reading: how records are read.
      central_share: for val, side of the central square that is kept, as a share of the short side.
      images_per_centre: for hard batches, images of each class whose mean embedding is its centre.
      evaluate_every: steps between evaluations on val.
      keep_best: whether the model with the highest MAP@R on val is the run's, or the last one: the
        better choice where val has few classes, or classes more like train's than new ones will be.
      patience: evaluations without a higher MAP@R after which the run ends; None for never.
      keep: how many of the latest checkpoints are kept, beside the best.
      steps_per_loop: steps in one call of TensorFlow.
      seed: of the weights, the batches and the crops.
      deterministic: whether two runs, or one that was interrupted and one that was not, have the
        same weights bit for bit, on a CPU; otherwise they differ as two seeds do.
      make_strategy: makes the distribution strategy.
      before_restoring: called before a checkpoint is looked at, which may not fit.
      configuration: all that several workers must have in common, as text; they compare it.
      on_ready: called once all is set up and restored, before anything is written or trained.

    Returns:
      Whether the run reached its end; False after Ctrl+C or SIGTERM, which finish the loop in
      hand and save.

    Raises:
      UsageError: the data, the batch or the checkpoint do not fit, or the run diverges; then
        nothing of it is saved.
      WorkerLostError: another process that trains along does not answer.
    """
    require_local(model_dir, "model_dir")
    require_positive(
        "train",
        steps=steps,
        evaluate_every=evaluate_every,
        steps_per_loop=steps_per_loop,
        images_per_centre=images_per_centre,
        microbatches=microbatches,
        keep=keep,
        **({} if patience is None else {"patience": patience}),
        **({} if crop_size is None else {"crop_size": crop_size}),
    )
    check_central_share(central_share)
    if patience is not None and not keep_best:
        raise UsageError("train.patience: waits for the best on val; set train.keep_best = True")
    if keep < 2:
        raise UsageError(f"train.keep {keep}: 2 or more, so that one is whole at any time")
    if not 0 <= seed < 2**32:
        raise UsageError(f"train.seed {seed}: 0 to 2^32 - 1")
    reading = checked(reading, "train.reading")
    augmentation = augmentation or Augmentation()
    if not isinstance(augmentation, Augmentation):
        raise UsageError(f"train.augmentation: @Augmentation(), not {augmentation!r}")

    if deterministic:
        make_deterministic()

    # ---- Data: what there is, and which rows each step sees.
    index = load_index(data_dir, "train")
    val_index = _val_index(index.info)
    plan = _make_plan(make_plan, index, seed)

    # ---- Model and optimizer, on the devices.
    strategy = make_strategy()
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_lost_workers(strategy))
        require_agreement(strategy, configuration, index.info)
        replicas = strategy.num_replicas_in_sync
        check_divides(plan, replicas, microbatches)
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            model = build_model() if crop_size is None else build_model(image_size=crop_size)
            shown = model if crop_size is None else build_model()
            check_same_weights(model, shown)
            check_compiles(model, replicas, microbatches, jit_compile)
            optimizers = Optimizers(
                model,
                make_optimizer,
                make_head_optimizer,
                clip_norm=clip_norm,
                average_decay=average_decay,
            )
        check_triplets(triplets, model)

        # Before the first step there is nothing to finish; but several workers stop together.
        alone = worker_index_and_count(strategy)[1] == 1
        stop = stack.enter_context(on_signals(at_once=alone))

        # ---- Where the run stands; one process at a time.
        os.makedirs(model_dir, exist_ok=True)
        chief = is_chief(strategy)
        if chief:
            what = f"model_dir {model_dir}"
            stack.enter_context(exclusive(os.path.join(model_dir, LOCK_FILE), what))
            claim_data(model_dir, index.info)
            before_restoring()
        checkpoints = Checkpoints(model_dir, model, optimizers, keep=keep, writes=chief)
        first_step = checkpoints.restore_latest()
        require_same(strategy, first_step, f"the last step saved in model_dir {model_dir}")

        if init_from is not None and not first_step:
            begun = _start_from(init_from, model, optimizers)
            require_same(strategy, begun, f"the step of the model in train.init_from {init_from}")
        if chief:
            on_ready()
        evaluated_step = int(checkpoints.evaluated_step)
        telemetry = stack.enter_context(
            Telemetry(
                model_dir,
                first_step=first_step,
                evaluated_step=evaluated_step,
                steps=steps,
                writes=chief,
            )
        )
        say_start(telemetry.line, strategy, plan, index, model, first_step, steps, microbatches)
        eval_model = EvalModel(strategy, model, shown, optimizers)
        if plan.hard_share and checkpoints.forget_centres(but_of=plan.num_classes):
            telemetry.line("other classes than before: no hard batches until the next evaluation")
        if val_index is None:
            telemetry.line("no val split with two images of a class: the last model is kept")
        elif not keep_best and checkpoints.best_step and not eval_model.whitens:
            telemetry.line(
                f"the model of step {checkpoints.best_step:,}, the best on val before"
                " train.keep_best was False, stays this run's"
            )

        # ---- What reads, and what computes.
        index = reading.bring(index)
        records = reading.records(index)
        seen_as = functools.partial(
            SplitImages,
            image_size=eval_model.image_size,
            central_share=central_share,
            batch_size=EVALUATION_BATCH,
            damaged=reading.damaged,
            strategy=strategy,
        )
        train_images = seen_as(index, records)
        val = None
        if val_index is not None:
            val_index = reading.bring(val_index)
            val = seen_as(val_index, reading.records(val_index))
        run_steps = make_train_steps(
            strategy,
            make_gradients(model, triplets, microbatches=microbatches, jit_compile=jit_compile),
            optimizers,
            batch_size=plan.batch_size // replicas,
            embedding_dim=int(model.output_shape[1]),
        )
        training = TrainLoop(
            strategy=strategy,
            run_steps=run_steps,
            optimizers=optimizers,
            index=index,
            plan=plan,
            records=records,
            augmentation=augmentation,
            image_size=int(model.input_shape[1]),
            steps_per_loop=steps_per_loop,
            damaged=reading.damaged,
            model_dir=model_dir if chief else None,
            telemetry=telemetry,
            should_stop=lambda: any_worker(strategy, stop.asked),
        )

        def require_finite() -> None:
            training.require_finite(eval_model.with_training_weights(), train_images)

        if not first_step and init_from is None:
            eval_model.initialize_head(train_images, plan.class_rows)

        # ---- Step by step.
        stop.at_once = False
        step, stopped = first_step, False
        while True:
            if (step % evaluate_every == 0 or step == steps) and evaluated_step < step:
                require_finite()
                whitens = eval_model.whitens and (val is not None or step == steps)
                if val is not None or plan.hard_share or whitens:  # in which one can be killed
                    checkpoints.save(step, evaluated_step=evaluated_step)
                training.log_last_batch(train_images)
                with eval_model.as_evaluated(
                    train_images, plan.class_rows, whitens=whitens
                ) as forward:
                    if whitens and (val is None or not keep_best):
                        checkpoints.save_best(step)
                    if val is not None:
                        found = embed(forward, val, "val")
                        embedded = Embedded(val, *found)
                        metrics = measure(embedded, group=index.info.group, what="val")
                        telemetry.points(*found, val)
                        best = keep_best and checkpoints.save_if_best(step, metrics.map_at_r)
                        note = "  (best so far)" if best else ""
                        telemetry.evaluation(step, metrics.mean, note)
                    if plan.hard_share:
                        centres = class_centres(
                            forward,
                            train_images,
                            plan.class_rows,
                            images_per_centre=images_per_centre,
                        )
                        checkpoints.centres.assign(broadcast_from_chief(strategy, centres))
                evaluated_step = step
                checkpoints.save(step, evaluated_step=evaluated_step)
            stopped = training.should_stop()
            if step >= steps or stopped:
                break
            if val is not None and patience is not None and evaluated_step == step:
                waited = -(-(step - checkpoints.best_step) // evaluate_every)
                if waited >= patience:
                    telemetry.line(
                        f"no higher MAP@R on val for {waited} evaluations: ended after step"
                        f" {step:,} of {steps:,}; the best is of step {checkpoints.best_step:,}"
                    )
                    steps = step
                    break
            goal = min(steps, (step // evaluate_every + 1) * evaluate_every)
            table = checkpoints.centres.numpy()
            step, stopped = training.run(step, goal, table if len(table) else None)
            if stopped:
                require_finite()
                checkpoints.save(step, evaluated_step=evaluated_step)
                break
        # Nobody reads, or leaves, before the chief has written.
        any_worker(strategy, False)
        if not step:
            telemetry.line("stopped before the first step; nothing was saved")
        elif stopped:
            telemetry.line(
                f"stopped after step {step:,} of {steps:,}, saved in {model_dir};"
                f" to go on: python -m trainer.main --model_dir={shlex.quote(model_dir)}"
            )
    return not stopped


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
    return index if has_queries(index, group=info.group) else None


def _start_from(model_dir: str, model: keras.Model, optimizers: Optimizers) -> int:
    """Restores the best model of another run, and gives its step."""
    if not Checkpoints.exist(model_dir):
        raise UsageError(f"train.init_from {model_dir}: no checkpoint there")
    try:
        step = Checkpoints(model_dir, model, writes=False).restore_best()
    except MisfitError as error:
        raise UsageError(
            f"train.init_from {model_dir}: checkpoint {error.path} {error.what}; set build_model as"
            " it was there, or leave train.init_from out"
        ) from error
    except UsageError as error:
        raise UsageError(f"train.init_from {model_dir}: {error}") from error
    optimizers.start_averages()
    return step
