"""Two workers have the same weights, stop together, and refuse different settings or data."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.workers import Worker, command, saved_variables, workers
from tripletmill.formats.index import load_info


def assert_close(model_dir: Path, expected: Path, tolerance: float) -> None:
    one, other = saved_variables(model_dir), saved_variables(expected)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_stopped_by_one_and_gone_on_with(data_dir, tmp_path):
    """In the end the weights equal those of one process that was never stopped."""
    long = ("STEPS = 120", "train.evaluate_every = 60", "train.steps_per_loop = 1")
    arguments = command(data_dir, tmp_path / "run", *long)
    with workers(arguments, tmp_path) as (chief, other):
        metrics = tmp_path / "run" / "metrics.jsonl"
        chief.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)
        other.process.send_signal(signal.SIGTERM)
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    [step] = re.findall(r"stopped after step (\d+) of 120, saved in", chief.output())
    assert "stopped after" not in other.output()  # only the chief prints this line
    with workers(arguments, tmp_path) as (chief, other):
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    assert f"going on from step {step}" in chief.output()
    assert "trained model" in chief.output()
    alone = Worker(command(data_dir, tmp_path / "alone", *long), tmp_path / "alone.log", None)
    try:
        assert alone.code() == 0, alone.output()
    finally:
        alone.end()
    assert_close(tmp_path / "run", tmp_path / "alone", 5e-5)


def assert_refused(both: list[Worker], pattern: str) -> None:
    for worker in both:
        assert worker.code() == 2, worker.output()
        [line] = worker.output().splitlines()
        assert re.match(f"error: the workers differ in their {pattern}", line)


def test_workers_with_other_configurations(data_dir, tmp_path):
    arguments = command(data_dir, tmp_path / "run")
    second = [*arguments, "--gin_param=WarmupCosine.peak = 0.06"]
    with workers(arguments, tmp_path, second=second) as both:
        assert_refused(both, "configuration: that of worker 1 is not that of worker 0; start all")


@pytest.mark.slow
def test_workers_with_other_data(data_dir, tmp_path):
    """The folder of the data set and the way it is read may differ."""
    other_data = tmp_path / "other data"
    shutil.copytree(data_dir, other_data)
    path = other_data / "dataset_info.json"
    content = path.read_text()
    fingerprint = load_info(str(data_dir)).input_fingerprint
    path.write_text(content.replace(fingerprint, fingerprint[::-1]))
    arguments = command(data_dir, tmp_path / "run")
    second = command(other_data, tmp_path / "run", "Reading.cache = True")
    with workers(arguments, tmp_path, second=second) as both:
        assert_refused(both, "data set: that of worker 1 is not that of worker 0; give all")
