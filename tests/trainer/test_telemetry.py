"""metrics.jsonl of a run that goes on, and the progress lines."""

import json

import pytest
import tensorflow as tf

from trainer.telemetry import Telemetry

NUMBERS = {"loss": 0.5, "active": 0.25, "images_per_second": 100.0}


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


def test_tensorboard_reads_it(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Telemetry(str(tmp_path), first_step=0, steps=9) as telemetry:
        telemetry.training(3, NUMBERS)
    events = loader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [scalar] = events.Tensors("train/loss")
    assert scalar.step == 3
    assert tf.make_ndarray(scalar.tensor_proto) == 0.5
