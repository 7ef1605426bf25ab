"""Gin at the edge: what a configuration may name, and the copy that lies beside a run."""

import inspect
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import gin
import keras

from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan
from trainer.data.reading import Reading
from trainer.distributed.strategy import make_strategy
from trainer.evaluation.evaluate import evaluate
from trainer.export.export import export
from trainer.models.embedding_model import build_model
from trainer.runs.folder import CONFIG_FILE, statements
from trainer.training.optimizers import WarmupCosine
from trainer.training.train import train
from tripletmill.cli import commandline
from tripletmill.errors import UsageError
from tripletmill.losses.triplet import batch_triplets, hard_triplets, semihard_triplets

_LONGEST = 10_000
# What may differ from host to host: its disks, its memory, its patience.
_OF_HOST = (
    "MODEL_DIR",
    "DATA_DIR",
    "Reading.cache",
    "Reading.folder",
    "Reading.stream",
    "make_strategy.start_seconds",
)


# bfloat16 needs no scaling of the loss; a head's own rate is train.make_head_optimizer; and the
# weights that the last one trains are not those to evaluate.
_LEFT_OUT = ("LossScaleOptimizer", "MultiOptimizer", "ScheduleFreeAdamW")


def _classes(module: ModuleType, base: type) -> list[Callable[..., Any]]:
    """What Keras has of a kind."""
    found = inspect.getmembers(
        module, lambda value: inspect.isclass(value) and issubclass(value, base)
    )
    return [value for name, value in found if value is not base and name not in _LEFT_OUT]


CONFIGURABLE: tuple[Callable[..., Any], ...] = (
    train,
    evaluate,
    export,
    build_model,
    batch_triplets,
    hard_triplets,
    semihard_triplets,
    make_strategy,
    BatchPlan,
    Augmentation,
    Reading,
    WarmupCosine,
    *_classes(keras.optimizers, keras.optimizers.Optimizer),
    *_classes(keras.optimizers.schedules, keras.optimizers.schedules.LearningRateSchedule),
)


def load(
    gin_files: list[str],
    data_dir: str | None,
    model_dir: str | None,
    called: Sequence[Callable[..., Any]] = (evaluate,),
) -> str:
    """Parses the configuration of a command line; without a file, the one that lies in model_dir.

    Args:
      gin_files: of --gin_file.
      data_dir: of --data_dir.
      model_dir: of --model_dir.
      called: which of the configurables will be, and need all their values.

    Returns:
      The folder of the run.
    """
    defaults = []
    if not gin_files:
        saved = os.path.join(model_dir or "", CONFIG_FILE)
        if not os.path.isfile(saved):
            there = f" and there is no {saved}" if model_dir else ""
            raise UsageError(f"--gin_file is missing{there}; configurations are in gin/")
        gin_files.append(saved)
        defaults = ["include 'base.gin'"]  # wiring that is newer than the run
    folders = {"DATA_DIR": data_dir, "MODEL_DIR": model_dir}
    commandline.parse_gin(
        CONFIGURABLE,
        [f"{name} = {path!r}" for name, path in folders.items() if path],
        required={f"%{name}": name.lower() for name in folders},
        defaults=defaults,
        called=called,
    )
    return gin.query_parameter("%MODEL_DIR")


def common() -> str:
    """What all workers must have in common of the configuration, a line a statement."""
    # Else a long path would take several lines.
    lines = statements(gin.config_str(max_line_length=_LONGEST))
    return "\n".join(line for line in lines if line and line.partition(" = ")[0] not in _OF_HOST)
