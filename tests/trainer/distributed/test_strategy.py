"""The strategy that is made, and what two workers with one strategy show in TensorBoard."""

import json
from pathlib import Path

import pytest
import tensorflow as tf

from tests.fixtures.workers import command, workers
from trainer.distributed.strategy import make_strategy
from tripletmill.errors import UsageError


@pytest.mark.parametrize("name", ["one_device", "mirrored", "tpu"])
def test_a_cluster_of_which_each_would_train_alone(monkeypatch, name):
    two = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(two))
    with pytest.raises(UsageError, match=f"'{name}': TF_CONFIG has 2 workers, .*'multi_worker'"):
        make_strategy(name=name)
    other = {"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}
    if name == "one_device":  # for another program, and not needed here
        monkeypatch.setenv("TF_CONFIG", json.dumps(other))
        assert isinstance(make_strategy(name=name), tf.distribute.OneDeviceStrategy)
    one = {**two, "cluster": {"worker": ["a:1"]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(one))
    assert isinstance(make_strategy(name="one_device"), tf.distribute.OneDeviceStrategy)


def test_one_device_is_one(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(
        UsageError, match="cpu_replicas 2: 'one_device' has one replica; leave it out"
    ):
        make_strategy(name="one_device", cpu_replicas=2)


def tags(model_dir: Path) -> set[str]:
    """The tags of all values that TensorBoard shows."""
    return {
        value.tag
        for file in (model_dir / "tensorboard").glob("events*")
        for record in tf.data.TFRecordDataset(str(file))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    }


@pytest.mark.slow
def test_the_first_workers_triplets_are_shown(data_dir, tmp_path):
    # All triplets are active with this margin. Some of them lie within the first worker's rows.
    params = ("semihard_triplets.margin = 2.0", "BatchPlan.classes_per_batch = 6", "STEPS = 12")
    arguments = command(data_dir, tmp_path / "run", *params)
    with workers(arguments, tmp_path) as (chief, other):
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    shown = {"train/mined/positive", "train/mined/negative", "train/hardest_triplets"}
    assert shown <= tags(tmp_path / "run")
