"""Settings that every job has, in settings of a preprocessing job."""

import os
import pickle

import pytest

from tests.fixtures.jobs import job_settings
from tripletmill.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_shard": 0}, "preprocess.images_per_shard 0: 1 or more"),
        ({"threads": 0}, "preprocess.threads 0: 1 or more"),
        ({"max_rejected_share": 1.1}, r"preprocess.max_rejected_share 1.1: 0 to 1"),
        ({"max_rejected_share": float("nan")}, "preprocess.max_rejected_share nan: 0 to 1"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        job_settings("/data", **settings)


def test_threads_are_those_of_the_worker(monkeypatch):
    assert job_settings("/data", threads=3).threads_here == 3
    job = pickle.loads(pickle.dumps(job_settings("/data", threads=None)))
    monkeypatch.setattr(os, "cpu_count", lambda: 17)
    assert job.threads_here == 17
