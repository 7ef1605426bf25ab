"""What a run tells of itself: metrics.jsonl, TensorBoard, one progress line, and warnings."""

import json
import math
import os
import time
from collections.abc import Mapping
from types import TracebackType

import numpy as np

from trainer.evaluation.inference import SplitImages
from trainer.runs.folder import METRICS_FILE, TENSORBOARD_FOLDER, read_metrics
from trainer.runs.write_errors import naming_write_errors
from trainer.training.health import Health, effective_rank, spread
from trainer.training.tensorboard import TensorBoard
from trainer.training.train_step import LastBatch
from tripletmill.cli.progress import Progress, duration
from tripletmill.errors import UsageError
from tripletmill.storage.storage import write_file


class Telemetry:
    """Records numbers by step, and shows how far the run is.

    Whatever is called raises UsageError where a file cannot be written, as on a full disk.

    Args:
      model_dir: folder of the run.
      first_step: where it begins; what metrics.jsonl says of later steps is cut off, since they
        are done again, and TensorBoard is told to forget it.
      evaluated_step: the last that was evaluated, by default first_step; what it says of later
        evaluations is cut off.
      steps: where it ends.
      writes: False for a process that says and writes nothing, of several that train together.
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
            self._cut_back(
                model_dir, first_step, first_step if evaluated_step is None else evaluated_step
            )
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
        # Both write what they still hold. Where the disk is full, that was said already by an error
        # that is on its way, or it is said now.
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
        """Records what the last steps gave, updates the progress line, and warns.

        Args:
          step: they ended with.
          numbers: at least loss, active and images_per_second.
          last: the last batch, whose spread and effective rank are recorded too.
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
        since, at = self._start
        pace = (time.monotonic() - since) / max(step - at, 1)
        self._progress.update(
            f"step {step:,} of {self._steps:,}  loss {numbers['loss']:.4f}"
            f"  active {numbers['active']:.0%}  {numbers['images_per_second']:.0f} images/s"
            + (f"  input {numbers['input_share']:.0%}" if "input_share" in numbers else "")
            + f"  {duration(pace * (self._steps - step))} left",
            force=step >= self._steps,
        )
        for line in self._health.warnings(step, numbers):
            self.line(line)

    def evaluation(self, step: int, numbers: Mapping[str, float], note: str) -> None:
        """Records and prints metrics on val."""
        if not self._writes:
            return
        self._record(step, "val", numbers)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self._progress.line(f"step {step:,}  val: {shown}{note}")

    def batch(self, step: int, last: LastBatch, rows: np.ndarray, images: SplitImages) -> None:
        """Shows the distances and the hardest triplets of a batch; see `TensorBoard.batch`."""
        if self._writes:
            self._board.batch(step, last, rows, images)

    def points(self, embeddings: np.ndarray, rows: np.ndarray, images: SplitImages) -> None:
        """Shows embeddings [M, D] of a split as points; see `TensorBoard.points`."""
        if self._writes:
            self._board.points(embeddings, rows, images)

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if self._writes:
            self._progress.line(text)

    def _record(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        # JSON has no NaN.
        known = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = json.dumps({"step": step, "kind": kind, **known}, allow_nan=False)
        with naming_write_errors(self._path):
            self._file.write(row + "\n")
            self._file.flush()
        self._board.scalars(step, kind, numbers)

    def _cut_back(self, model_dir: str, first_step: int, evaluated_step: int) -> None:
        last = {"train": first_step, "val": evaluated_step}
        kept = [row for row in read_metrics(model_dir) if row["step"] <= last[row["kind"]]]
        write_file(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())
