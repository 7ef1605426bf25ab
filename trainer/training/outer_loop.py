"""The run as a whole: trains, evaluates on val, keeps the best model, and decides when to stop."""

import dataclasses
import shlex

from trainer.distributed.agreement import any_worker, broadcast_from_chief
from trainer.evaluation.inference import Forward, SplitImages, embed
from trainer.evaluation.measure import Embedded, measure
from trainer.runs.checkpoints import Checkpoints
from trainer.training.class_centres import class_centres
from trainer.training.eval_model import EvalModel
from trainer.training.settings import TrainSettings
from trainer.training.train_loop import TrainLoop


@dataclasses.dataclass
class OuterLoop:
    """Alternates between training steps and evaluations until the run ends.

    Attributes:
      train_loop: runs the training steps.
      eval_model: the model that is evaluated and kept.
      checkpoints: the run's checkpoints. The newest one is restored already.
      val: images of the val split; None if there are none to evaluate.
      settings: say when the run evaluates and when it ends.
    """

    train_loop: TrainLoop
    eval_model: EvalModel
    checkpoints: Checkpoints
    val: SplitImages | None
    settings: TrainSettings

    def __post_init__(self) -> None:
        self._telemetry, self._plan = self.train_loop.telemetry, self.train_loop.plan
        self._train_images = self.train_loop.images
        self._strategy = self._train_images.strategy
        self._evaluated_step = int(self.checkpoints.evaluated_step)

    def run(self, first_step: int) -> bool:
        """Trains until the run ends or is asked to stop.

        Args:
          first_step: number of steps that are done.

        Returns:
          Whether the run has reached its end; False if it was asked to stop.

        Raises:
          UsageError: the run diverges, a record is damaged, or a file cannot be written.
        """
        step, stopped = first_step, False
        while not stopped:
            if self._evaluation_is_due(step):
                self._evaluate(step)
            stopped = self.train_loop.should_stop()
            if stopped or step >= self.settings.steps or self._patience_is_over(step):
                break
            step, stopped = self._train(step)
        # No process reads the files of the run, or ends, before the chief has written them.
        any_worker(self._strategy, False)
        if stopped:
            self._say_stopped(step)
        return not stopped

    def _train(self, step: int) -> tuple[int, bool]:
        """Trains up to the next evaluation; saves if the run is asked to stop on the way."""
        every = self.settings.evaluate_every
        goal = min(self.settings.steps, (step // every + 1) * every)
        centres = self.checkpoints.centres.numpy()
        step, stopped = self.train_loop.run(step, goal, centres if len(centres) else None)
        if stopped:
            self._require_finite()
            self._save(step)
        return step, stopped

    def _evaluation_is_due(self, step: int) -> bool:
        at_evaluation = step % self.settings.evaluate_every == 0 or step == self.settings.steps
        return at_evaluation and self._evaluated_step < step

    def _evaluate(self, step: int) -> None:
        """Evaluates on val, keeps the best model, and updates the class centres."""
        self._require_finite()
        val, keep_best = self.val, self.settings.keep_best
        whitens = self.eval_model.whitens and (val is not None or step == self.settings.steps)
        if val is not None or self._plan.hard_share or whitens:
            # What follows takes long, and the process may be killed meanwhile.
            self._save(step)
        self.train_loop.log_last_batch()
        with self.eval_model.as_evaluated(
            self._train_images, self._plan.class_rows, whitens=whitens
        ) as forward:
            if whitens and (val is None or not keep_best):
                self.checkpoints.save_best(step)
            if val is not None:
                self._evaluate_on(val, forward, step)
            if self._plan.hard_share:
                self._update_centres(forward)
        self._evaluated_step = step
        self._save(step)

    def _evaluate_on(self, val: SplitImages, forward: Forward, step: int) -> None:
        embeddings, rows = embed(forward, val, "val")
        embedded = Embedded(val, embeddings, rows)
        metrics = measure(embedded, group=val.index.info.group, what="val")
        self._telemetry.points(embeddings, rows, val)
        keep_best = self.settings.keep_best
        is_best = keep_best and self.checkpoints.save_if_best(step, metrics.map_at_r)
        note = "  (best so far)" if is_best else ""
        self._telemetry.evaluation(step, metrics.mean, note)

    def _update_centres(self, forward: Forward) -> None:
        centres = class_centres(
            forward,
            self._train_images,
            self._plan.class_rows,
            images_per_centre=self.settings.images_per_centre,
        )
        self.checkpoints.centres.assign(broadcast_from_chief(self._strategy, centres))

    def _patience_is_over(self, step: int) -> bool:
        """Returns whether too many evaluations have brought no better model, and says so."""
        patience = self.settings.patience
        if self.val is None or patience is None or self._evaluated_step != step:
            return False
        best_step = self.checkpoints.best_step
        waited = -(-(step - best_step) // self.settings.evaluate_every)
        if waited < patience:
            return False
        self._telemetry.line(
            f"no higher MAP@R on val for {waited} evaluations: ended after step {step:,} of"
            f" {self.settings.steps:,}; the best is of step {best_step:,}"
        )
        return True

    def _require_finite(self) -> None:
        self.train_loop.require_finite(self.eval_model.with_training_weights())

    def _save(self, step: int) -> None:
        self.checkpoints.save(step, evaluated_step=self._evaluated_step)

    def _say_stopped(self, step: int) -> None:
        if not step:
            self._telemetry.line("stopped before the first step; nothing was saved")
            return
        model_dir = self.settings.model_dir
        self._telemetry.line(
            f"stopped after step {step:,} of {self.settings.steps:,}, saved in {model_dir};"
            f" to go on: python -m trainer.main --model_dir={shlex.quote(model_dir)}"
        )
