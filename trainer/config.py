"""Gin at the edge: what a configuration may name, and the copy that lies beside a run."""

import difflib
import os
import re

import gin
import keras

from preprocessing import commandline
from preprocessing.errors import UsageError
from preprocessing.storage import write_file
from trainer.augmentation import Augmentation
from trainer.batching import BatchPlan
from trainer.evaluate import evaluate
from trainer.losses import batch_triplets, hard_triplets, semihard_triplets
from trainer.model import build_model
from trainer.optimizers import WarmupCosine
from trainer.reading import Reading
from trainer.strategy import make_strategy
from trainer.train import train

CONFIG_FILE = "config.gin"
CONFIGURABLE = (
    train,
    evaluate,
    build_model,
    batch_triplets,
    hard_triplets,
    semihard_triplets,
    make_strategy,
    BatchPlan,
    Augmentation,
    Reading,
    WarmupCosine,
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
)


def load(gin_files: list[str], data_dir: str | None, model_dir: str | None) -> str:
    """Parses the configuration of a command line; without a file, the one that lies in model_dir.

    Returns:
      The folder of the run.
    """
    if not gin_files:
        saved = os.path.join(model_dir or "", CONFIG_FILE)
        if not os.path.isfile(saved):
            there = f" and there is no {saved}" if model_dir else ""
            raise UsageError(f"--gin_file is missing{there}; configurations are in gin/")
        gin_files.append(saved)
    folders = {"DATA_DIR": data_dir, "MODEL_DIR": model_dir}
    commandline.parse_gin(
        CONFIGURABLE,
        [f"{name} = {path!r}" for name, path in folders.items() if path],
        required={f"%{name}": name.lower() for name in folders},
    )
    return gin.query_parameter("%MODEL_DIR")


def save(model_dir: str) -> None:
    """Writes the configuration into the run's folder; says what differs from the one there."""
    path = os.path.join(model_dir, CONFIG_FILE)
    config = gin.config_str()
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            before = file.read()
        changes = difflib.unified_diff(_statements(before), _statements(config), n=0)
        shown = [line for line in changes if not line.startswith(("@", "---", "+++"))]
        if shown:
            print(f"note: {path} is from another configuration; what differs:")
            print("\n".join(f"  {line}" for line in shown))
    os.makedirs(model_dir, exist_ok=True)
    write_file(path, config.encode())


def _statements(config: str) -> list[str]:
    """A line a statement, without the run's own place, which may change."""
    joined = re.sub(r"\\\n\s*", "", config)
    return [line for line in joined.splitlines() if not line.startswith(("#", "MODEL_DIR"))]
