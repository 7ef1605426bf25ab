"""What a run records and shows: metrics.jsonl, TensorBoard, a progress line, and warnings."""

import json
import math
import os
import time
from collections.abc import Mapping
from types import TracebackType

import numpy as np

from trainer.evaluation.inference import SplitImages
from trainer.runs.folder import METRICS_FILE, TENSORBOARD_FOLDER, read_training_metrics
from trainer.runs.write_errors import naming_write_errors
from trainer.training.health import Health, effective_rank, spread
from trainer.training.tensorboard import TensorBoard
from trainer.training.train_step import LastBatch
from tripletmill.cli.progress import Progress, duration
from tripletmill.errors import UsageError
from tripletmill.storage.storage import write_file


class Telemetry:
    """Records numbers by step, and shows how far the run is.

    All methods raise UsageError if a file cannot be written, for instance on a full disk.

    Args:
      model_dir: folder of the run.
      first_step: the step that the run begins or goes on with. Later steps are done again, so their
        rows are cut off from metrics.jsonl, and TensorBoard is told to forget them.
      evaluated_step: the last step that was evaluated, by default first_step. Rows of later
        evaluations are cut off from metrics.jsonl.
      steps: the step that the run ends with.
      writes: False for a process that prints and writes nothing. Of several workers only one does.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        first_step: int,
        steps: int,
        evaluated_step: int | None = None,
        writes: bool = True,
    ) -> None:
        self._path = os.path.join(model_dir, METRICS_FILE)
        self._steps = steps
        self._writes = writes
        if not writes:
            return
        with naming_write_errors(self._path):
            _cut_back(model_dir, first_step, evaluated_step)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - see __exit__
        self._board = TensorBoard(os.path.join(model_dir, TENSORBOARD_FOLDER), first_step)
        self._health = Health()
        self._progress = Progress()
        self._start = (time.monotonic(), first_step)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        if not self._writes:
            return
        self._progress.__exit__(kind, value, trace)
        # Closing writes what is still buffered. If another error is on its way, for instance since
        # the disk is full, that error is the one to show.
        try:
            with naming_write_errors(self._path):
                self._file.close()
            self._board.close()
        except UsageError:
            if kind is None:
                raise

    def training(
        self, step: int, numbers: Mapping[str, float], last: LastBatch | None = None
    ) -> None:
        """Records the numbers of the last steps, updates the progress line, and warns.

        Args:
          step: number of steps that are done.
          numbers: numbers by name, at least loss, active and images_per_second.
          last: the last batch. If it is given, the spread and the effective rank of its embeddings
            are recorded too.
        """
        if not self._writes:
            return
        if last is not None:
            shape = {
                "spread": spread(last.embeddings),
                "effective_rank": effective_rank(last.embeddings),
            }
            numbers = {**numbers, **shape}
        self._record(step, "train", numbers)
        start_time, start_step = self._start
        seconds_per_step = (time.monotonic() - start_time) / max(step - start_step, 1)
        self._progress.update(
            f"step {step:,} of {self._steps:,}  loss {numbers['loss']:.4f}"
            f"  active {numbers['active']:.0%}  {numbers['images_per_second']:.0f} images/s"
            + (f"  input {numbers['input_share']:.0%}" if "input_share" in numbers else "")
            + f"  {duration(seconds_per_step * (self._steps - step))} left",
            force=step >= self._steps,
        )
        for line in self._health.warnings(step, numbers):
            self.line(line)

    def evaluation(self, step: int, numbers: Mapping[str, float], note: str) -> None:
        """Records and prints metrics on val.

        Args:
          step: number of steps that are done.
          numbers: metrics by name.
          note: is printed after the metrics.
        """
        if not self._writes:
            return
        self._record(step, "val", numbers)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self._progress.line(f"step {step:,}  val: {shown}{note}")

    def batch(self, step: int, last: LastBatch, rows: np.ndarray, images: SplitImages) -> None:
        """Shows the distances and the hardest triplets of a batch, see `TensorBoard.batch`."""
        if self._writes:
            self._board.batch(step, last, rows, images)

    def points(self, embeddings: np.ndarray, rows: np.ndarray, images: SplitImages) -> None:
        """Shows embeddings [M, D] of a split as points, see `TensorBoard.points`."""
        if self._writes:
            self._board.points(embeddings, rows, images)

    def line(self, text: str) -> None:
        """Prints a line above the progress line."""
        if self._writes:
            self._progress.line(text)

    def _record(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        # JSON has neither NaN nor infinity.
        known = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = json.dumps({"step": step, "kind": kind, **known}, allow_nan=False)
        with naming_write_errors(self._path):
            self._file.write(row + "\n")
            self._file.flush()
        self._board.scalars(step, kind, numbers)


def _cut_back(model_dir: str, first_step: int, evaluated_step: int | None) -> None:
    """Removes the rows of steps and evaluations that will be done again."""
    path = os.path.join(model_dir, METRICS_FILE)
    if not os.path.exists(path):
        return
    last = {"val": first_step if evaluated_step is None else evaluated_step}
    rows = [
        row
        for row in read_training_metrics(model_dir)
        if row["step"] <= last.get(row["kind"], first_step)
    ]
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
