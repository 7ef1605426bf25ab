"""What lies in the folder of a run, and which data set the run was trained on."""

import json
import os
from typing import Any

from trainer.runs.checkpoints import LATEST, Checkpoints
from trainer.runs.write_errors import naming_write_errors
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetInfo
from tripletmill.storage.storage import write_file

CONFIG_FILE = "config.gin"
DATA_FILE = "data.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
EVALUATION_FOLDER = "evaluation"


def data_of(model_dir: str) -> dict[str, Any]:
    """What a run was trained on: "input_fingerprint" and "settings" of a data set.

    Raises:
      UsageError: it is not noted.
    """
    path = os.path.join(model_dir, LATEST, DATA_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UsageError(
            f"model_dir {model_dir}: which data the run was trained on is not noted (no {path});"
            " train it for another step, or train again"
        ) from error


def is_data_of(model_dir: str, info: DatasetInfo) -> bool:
    """Whether a run was trained on this data set."""
    try:
        with open(os.path.join(model_dir, LATEST, DATA_FILE), encoding="utf-8") as file:
            return json.load(file) == _identity(info)
    except FileNotFoundError:
        return False


def read_metrics(model_dir: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in order; none where there is no such file."""
    rows: list[dict[str, Any]] = []
    try:
        with open(os.path.join(model_dir, METRICS_FILE), encoding="utf-8") as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break  # A kill cut this line short; nothing follows it.
    except FileNotFoundError:
        pass
    return rows


def claim_data(model_dir: str, info: DatasetInfo) -> None:
    """Notes which data set a run is trained on.

    Raises:
      UsageError: the run has checkpoints from another one.
    """
    if Checkpoints.exist(model_dir) and not is_data_of(model_dir, info):
        raise UsageError(
            f"model_dir {model_dir}: the run there was trained on another data set than"
            f" {info.directory}; choose another --model_dir"
        )
    path = os.path.join(model_dir, LATEST, DATA_FILE)
    with naming_write_errors(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, json.dumps(_identity(info), sort_keys=True).encode())


def _identity(info: DatasetInfo) -> dict[str, Any]:
    return {"input_fingerprint": info.input_fingerprint, "settings": dict(info.settings)}
