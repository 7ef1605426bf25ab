"""What a job does about its output folder, without a pipeline."""

from typing import Any

import pytest

from pipeline.beam.outputs import (
    OutputState,
    check_apart,
    check_output,
    claim_output,
    inspect_output,
    lock_output,
)
from preprocessing.writing.claim import read_plan
from tests.fixtures.jobs import job_settings
from tripletmill.errors import UsageError

CLAIM: dict[str, Any] = {"fingerprint": "f", "versions": "v", "num_images": 5, "num_shards": 1}


@pytest.mark.parametrize(
    ("path", "output", "apart"),
    [
        ("photos", "photos", False),
        ("photos", "photos/data", False),
        ("photos", "photos2", True),
        ("photos/a/*", "photos/a", False),
        ("photos/a/*", "photos", True),
        ("link", "photos/data", False),
        ("photos/list.csv", "photos", True),
    ],
)
def test_output_and_input_are_apart(tmp_path, path, output, apart):
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    if apart:
        check_apart("input", str(tmp_path / path), str(tmp_path / output))
        return
    with pytest.raises(UsageError, match=f"{output}: lies in the input; choose another folder"):
        check_apart("input", str(tmp_path / path), str(tmp_path / output))


def test_an_unfinished_job_is_continued_by_an_equal_one(tmp_path):
    job = job_settings(tmp_path / "data")
    check_output(job)
    fresh = OutputState(finished=False, unfinished_plan=None)
    assert inspect_output(job, fingerprint="f", newest=0) == fresh
    claim = claim_output(job, **CLAIM)
    check_output(job)
    state = inspect_output(job, fingerprint="f", newest=0)
    assert state == OutputState(finished=False, unfinished_plan=claim.content)
    assert state.unfinished_plan == read_plan(job.output)
    with pytest.raises(UsageError, match="a data set made from other images"):
        inspect_output(job, fingerprint="other", newest=0)
    anew = job_settings(tmp_path / "data", overwrite=True)
    assert inspect_output(anew, fingerprint="other", newest=0) == fresh


def test_other_settings_and_foreign_files_are_refused(tmp_path):
    claim_output(job_settings(tmp_path / "data"), **CLAIM)
    with pytest.raises(UsageError, match=r"other settings \(min_images 1, now 2\); choose another"):
        check_output(job_settings(tmp_path / "data", min_images=2))
    check_output(job_settings(tmp_path / "data", min_images=2, overwrite=True))
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path):
        with pytest.raises(UsageError, match=r"not a folder|no data set of tripletmill"):
            check_output(job_settings(output, overwrite=True))


def test_an_output_is_locked_once(tmp_path):
    job = job_settings(tmp_path / "data")
    with (
        lock_output(job),
        pytest.raises(UsageError, match="another process is writing there"),
        lock_output(job),
    ):
        pass
    with lock_output(job):
        pass
