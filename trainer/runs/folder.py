"""What lies in the folder of a run: its data set, its configuration and its metrics."""

import contextlib
import dataclasses
import difflib
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from trainer.runs.checkpoints import LATEST, Checkpoints
from trainer.runs.write_errors import naming_write_errors
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetInfo
from tripletmill.storage.storage import exclusive, read, write_file

CONFIG_FILE = "config.gin"
DATA_FILE = "data.json"
LOCK_FILE = ".lock"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
EVALUATION_FOLDER = "evaluation"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, as text.

    Attributes:
      text: the whole configuration in gin's syntax. It is saved in the folder of the run; an empty
        text is not saved.
      shared: what all workers of a run must have in common, to be compared.
    """

    text: str = ""
    shared: str = ""

    def show_changes(self, model_dir: str) -> None:
        """Prints how this configuration differs from the one in the run's folder, if it does."""
        path = os.path.join(model_dir, CONFIG_FILE)
        if changes := self._changes(path):
            print(f"note: {path} is from another configuration; what differs:")
            # An error may come next on stderr, which must not overtake these lines.
            print("\n".join(f"  {line}" for line in changes), flush=True)

    def save(self, model_dir: str) -> None:
        """Writes the configuration into the run's folder.

        If another configuration lies there, it is kept as config.1.gin, config.2.gin, ...
        """
        if not self.text:
            return
        path = os.path.join(model_dir, CONFIG_FILE)
        if self._changes(path):
            former = next(
                name
                for number in itertools.count(1)
                if not os.path.exists(name := f"{path.removesuffix('.gin')}.{number}.gin")
            )
            with naming_write_errors(former):
                write_file(former, read(path))
            print(f"the former {path} is kept as {former}")
        with naming_write_errors(path):
            os.makedirs(model_dir, exist_ok=True)
            write_file(path, self.text.encode())

    def _changes(self, path: str) -> list[str]:
        """Returns the statements that only one of the file and this configuration has."""
        if not self.text or not os.path.isfile(path):
            return []
        before = statements(read(path).decode())
        changes = difflib.unified_diff(before, statements(self.text), n=0)
        return [line for line in changes if not line.startswith(("@", "---", "+++"))]


def statements(config: str) -> list[str]:
    """Returns the statements of a gin configuration, one a line.

    Comments are left out, and so is MODEL_DIR, because the folder of a run may be moved.
    """
    joined = re.sub(r"\\\n\s*", "", config)
    return [line for line in joined.splitlines() if not line.startswith(("#", "MODEL_DIR"))]


@contextlib.contextmanager
def open_run(
    model_dir: str, info: DatasetInfo, config: RunConfig, *, writes: bool
) -> Iterator[None]:
    """Makes the folder of a run, and keeps other processes from training in it.

    Args:
      model_dir: folder of the run.
      info: the data set that the run is trained on.
      config: configuration of the run. What differs from the configuration in the folder is
        printed.
      writes: whether this process writes. A process that does not write only makes the folder.

    Raises:
      UsageError: another process trains there, or the run was trained on another data set.
    """
    os.makedirs(model_dir, exist_ok=True)
    if not writes:
        yield
        return
    with exclusive(os.path.join(model_dir, LOCK_FILE), f"model_dir {model_dir}"):
        claim_data(model_dir, info)
        config.show_changes(model_dir)
        yield


def read_training_metrics(model_dir: str) -> list[dict[str, Any]]:
    """Reads what training has recorded, oldest first.

    Args:
      model_dir: folder of the run.

    Returns:
      The rows of metrics.jsonl; empty if there is no such file. If a killed process has left a line
      that was cut short, that line and all after it are left out.
    """
    try:
        lines = read(os.path.join(model_dir, METRICS_FILE)).splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def data_of(model_dir: str) -> dict[str, Any]:
    """Returns "input_fingerprint" and "settings" of the data set that a run was trained on.

    Raises:
      UsageError: the run has no note of its data set.
    """
    path = os.path.join(model_dir, LATEST, DATA_FILE)
    try:
        return json.loads(read(path))
    except FileNotFoundError as error:
        raise UsageError(
            f"model_dir {model_dir}: which data the run was trained on is not noted (no {path});"
            " train it for another step, or train again"
        ) from error


def is_data_of(model_dir: str, info: DatasetInfo) -> bool:
    """Returns whether a run was trained on this data set."""
    try:
        return data_of(model_dir) == _identity(info)
    except UsageError:
        return False


def claim_data(model_dir: str, info: DatasetInfo) -> None:
    """Notes which data set a run is trained on.

    Raises:
      UsageError: the run has checkpoints that were trained on another data set.
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
