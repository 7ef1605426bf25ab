"""The settings of a training run, which gin calls `train`."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import keras
import tensorflow as tf

from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan
from trainer.data.image_ops import check_central_share
from trainer.data.reading import Reading
from trainer.distributed.strategy import make_strategy
from trainer.runs.folder import RunConfig
from trainer.training.gradients import TripletLoss
from trainer.training.optimizers import MakeOptimizer
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats.index import DatasetIndex
from tripletmill.storage.storage import require_local


class MakePlan(Protocol):
    """Makes the plan of the batches, for instance `BatchPlan` with its other arguments bound."""

    def __call__(self, index: DatasetIndex, *, seed: int) -> BatchPlan: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What a training run does. In gin, the settings are the parameters of `train`.

    Attributes:
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
        more like the classes of train than new classes will be.
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

    Raises:
      UsageError: a setting is out of its range, or of another type.
    """

    data_dir: str
    model_dir: str
    build_model: Callable[..., keras.Model]
    triplets: TripletLoss
    make_optimizer: MakeOptimizer
    make_plan: MakePlan
    steps: int
    make_head_optimizer: MakeOptimizer | None = None
    clip_norm: float | None = None
    average_decay: float | None = None
    microbatches: int = 1
    jit_compile: bool = False
    init_from: str | None = None
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    crop_size: int | None = None
    reading: Reading = dataclasses.field(default_factory=Reading)
    central_share: float = 1.0
    images_per_centre: int = 8
    evaluate_every: int = 100
    keep_best: bool = True
    patience: int | None = None
    keep: int = 2
    steps_per_loop: int = 10
    seed: int = 0
    deterministic: bool = False
    make_strategy: Callable[[], tf.distribute.Strategy] = make_strategy
    configuration: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require_local(self.model_dir, "model_dir")
        counts = ("steps", "evaluate_every", "images_per_centre", "steps_per_loop", "microbatches")
        numbers = {name: getattr(self, name) for name in (*counts, "keep", "patience", "crop_size")}
        require_positive("train", **{name: n for name, n in numbers.items() if n is not None})
        check_central_share(self.central_share)
        if self.patience is not None and not self.keep_best:
            raise UsageError(
                "train.patience: it waits for a better model on val; set train.keep_best = True"
            )
        if self.keep < 2:
            raise UsageError(
                f"train.keep {self.keep}: 2 or more, so that one checkpoint is always complete"
            )
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"train.seed {self.seed}: 0 to 2^32 - 1")
        # Gin hands on any value.
        for name, kind in (("reading", Reading), ("augmentation", Augmentation)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise UsageError(f"train.{name}: @{kind.__name__}(), not {value!r}")
