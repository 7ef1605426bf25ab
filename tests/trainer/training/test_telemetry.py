"""metrics.jsonl of a run that is resumed, the progress lines, and which process writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.training.health import STEPS
from trainer.training.telemetry import Telemetry
from trainer.training.train_step import LastBatch

NUMBERS = {"loss": 0.5, "active": 0.25, "images_per_second": 100.0}


def last_batch(embeddings: np.ndarray) -> LastBatch:
    """Makes a batch without triplets."""
    rows = np.zeros(len(embeddings), np.int32)
    return LastBatch(embeddings, rows, rows, np.full(len(embeddings), -np.inf, np.float32))


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_what_is_done_again_is_cut_off(tmp_path, capsys):
    metrics = tmp_path / "metrics.jsonl"
    with Telemetry(str(tmp_path), first_step=0, steps=9) as telemetry:
        for step in (3, 6, 9):
            telemetry.training(step, NUMBERS)
        telemetry.evaluation(9, {"map_at_r": 0.5}, "  (best so far)")
    assert steps(metrics) == [3, 6, 9, 9]
    with metrics.open("a") as file:
        file.write('{"step": 12, "lo')  # killed in the middle of a line
    with Telemetry(str(tmp_path), first_step=6, steps=9) as telemetry:
        assert steps(metrics) == [3, 6]
        telemetry.training(9, NUMBERS)
    assert steps(metrics) == [3, 6, 9]
    assert list((tmp_path / "tensorboard").iterdir())
    shown = capsys.readouterr().err.splitlines()
    assert "step 9 of 9  loss 0.5000  active 25%  100 images/s  0 s left" in shown
    assert "step 9  val: map_at_r 0.500  (best so far)" in shown


def test_an_evaluation_that_is_done_again_is_cut_off(tmp_path):
    """A run that is killed in an evaluation evaluates again when it is resumed."""
    with Telemetry(str(tmp_path), first_step=0, steps=9) as telemetry:
        for step in (3, 6):
            telemetry.training(step, NUMBERS)
            telemetry.evaluation(step, {"map_at_r": 0.5}, "")
    with Telemetry(str(tmp_path), first_step=6, evaluated_step=3, steps=9):
        assert steps(tmp_path / "metrics.jsonl") == [3, 3, 6]


def test_tensorboard_reads_it(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Telemetry(str(tmp_path), first_step=0, steps=9) as telemetry:
        telemetry.training(3, NUMBERS)
    events = loader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [scalar] = events.Tensors("train/loss")
    assert scalar.step == 3
    assert tf.make_ndarray(scalar.tensor_proto) == 0.5


def test_tensorboard_forgets_what_is_done_again(tmp_path):
    """TensorBoard's own reader keeps the step that a run is resumed from, and no later one."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    for first_step, steps in ((0, (3, 6, 9, 12)), (6, (8, 10)), (8, (9,))):
        with Telemetry(str(tmp_path), first_step=first_step, steps=9) as telemetry:
            for step in steps:
                telemetry.training(step, NUMBERS)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Tensors("train/loss")] == [3, 6, 8, 9]


# RLIMIT_FSIZE limits the size of files, so that writing fails as it does on a full disk.
FULL = """
import resource, sys
import numpy as np
from tripletmill.errors import UsageError
from trainer.data.damaged_records import Damaged
from trainer.training.telemetry import Telemetry
from trainer.training.train_loop import append_damaged
what, folder = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    if what == "damaged":
        append_damaged(folder, [Damaged("f", n, "s" * 90, "p") for n in range(500)], 500)
    with Telemetry(folder, first_step=0, steps=999) as telemetry:
        for step in range(1, 999):
            numbers = {"x" * 2000: 0.5} if what == "metrics" else {"a": 0.5, "b": 0.5}
            telemetry.evaluation(step, numbers, "")
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "file"),
    [("damaged", "damaged.jsonl"), ("metrics", "metrics.jsonl"), ("tensorboard", "tensorboard")],
)
def test_full_disk(tmp_path, what, file):
    done = subprocess.run(
        [sys.executable, "-c", FULL, what, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path / file} could not be written (")
    assert line.endswith("what was saved before is kept; make room, and the same command goes on")


def test_metrics_are_strict_json(tmp_path):
    def refuse(constant: str):
        raise AssertionError(constant)

    numbers = NUMBERS | {"gradient_norm": float("inf"), "learning_rate": float("nan")}
    with Telemetry(str(tmp_path), first_step=0, steps=9) as telemetry:
        telemetry.training(3, numbers)
        telemetry.evaluation(3, {"map_at_r": np.float64(0.5), "recall": np.float32("nan")}, "")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    train, val = (json.loads(line, parse_constant=refuse) for line in lines)
    unknown = {"gradient_norm": None, "learning_rate": None}
    assert train == {"step": 3, "kind": "train", **NUMBERS, **unknown}
    assert val == {"step": 3, "kind": "val", "map_at_r": 0.5, "recall": None}


def test_a_collapse_is_recorded_and_told_once(tmp_path, capsys):
    cross = last_batch(np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32))
    point = last_batch(np.full([4, 2], 0.5, np.float32))
    with Telemetry(str(tmp_path), first_step=0, steps=200) as telemetry:
        telemetry.training(10, NUMBERS, cross)
        for step in range(20, 200, 10):
            telemetry.training(step, NUMBERS, point)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["spread"] == 1
    assert rows[0]["effective_rank"] == pytest.approx(2)
    assert (rows[1]["spread"], rows[1]["effective_rank"]) == (0, 1)
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith(f"warning: step {20 + STEPS}: since step 20 embeddings have")


def test_another_process_says_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 12}\n')
    last, rows = last_batch(np.zeros([4, 2], np.float32)), np.arange(4)
    with Telemetry(str(tmp_path), first_step=6, steps=9, writes=False) as telemetry:
        telemetry.training(9, NUMBERS, last)
        telemetry.evaluation(9, {"map_at_r": 0.5}, "")
        telemetry.batch(9, last, rows, None)
        telemetry.points(last.embeddings, rows, None)
        telemetry.line("text")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert steps(tmp_path / "metrics.jsonl") == [12]
    assert not any(capsys.readouterr())
