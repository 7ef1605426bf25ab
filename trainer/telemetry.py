"""What a run tells of itself: metrics.jsonl, TensorBoard, and one progress line."""

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType

import tensorflow as tf

from preprocessing.progress import Progress, duration
from preprocessing.storage import write_file

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Telemetry:
    """Records numbers by step, and shows how far the run is.

    Args:
      model_dir: folder of the run.
      first_step: where it begins; what metrics.jsonl says of later steps is cut off, since they
        are done again.
      steps: where it ends.
    """

    def __init__(self, model_dir: str, *, first_step: int, steps: int) -> None:
        self._path = os.path.join(model_dir, METRICS_FILE)
        self._steps = steps
        self._cut_back(first_step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._writer = tf.summary.create_file_writer(os.path.join(model_dir, TENSORBOARD_FOLDER))
        self._progress = Progress()
        self._start = (time.monotonic(), first_step)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, value, trace)
        self._file.close()
        self._writer.close()

    def training(self, step: int, numbers: Mapping[str, float]) -> None:
        """Records what the last steps gave, and updates the progress line."""
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

    def evaluation(self, step: int, numbers: Mapping[str, float], note: str) -> None:
        """Records and prints metrics on val."""
        self._record(step, "val", numbers)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self._progress.line(f"step {step:,}  val: {shown}{note}")

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._progress.line(text)

    def _record(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        row = {"step": step, "kind": kind, **numbers}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        with self._writer.as_default():
            for name, value in numbers.items():
                tf.summary.scalar(f"{kind}/{name}", value, step=step)

    def _cut_back(self, first_step: int) -> None:
        if not os.path.exists(self._path):
            return
        kept = []
        with open(self._path, encoding="utf-8") as file:
            for line in file:
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line)
                except ValueError:
                    break  # a line cut short by a kill; nothing follows it
        write_file(self._path, "".join(kept).encode())
