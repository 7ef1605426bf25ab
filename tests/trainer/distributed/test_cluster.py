"""Values of TF_CONFIG that are understood, and values that are refused."""

import json

import pytest

from trainer.distributed.cluster import cluster
from tripletmill.errors import UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"TF_CONFIG must be .*\(JSONDecodeError"),
        ('{"cluster": {}}', r"KeyError: 'worker'"),
        ('{"cluster": {"worker": ["a:1"]}}', "KeyError: 'task'"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "index is 1, but",
        ),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "'chief'"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "same"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "HOST:PORT"),
    ],
)
def test_wrong_clusters(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=message):
        cluster()


def test_a_cluster_and_none(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert cluster() is None
    task = {"type": "worker", "index": "1"}
    config = {"cluster": {"worker": ["a:1", "b:2"]}, "task": task}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster() == (["a:1", "b:2"], 1)
