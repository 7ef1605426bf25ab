"""Settings of a preprocessing job: what decides the bytes, and values that are refused."""

import json

import pytest

from preprocessing.splits import HashSplits, QueryGallery
from tests.fixtures.jobs import job_settings
from tripletmill.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_images": 0}, "preprocess.min_images 0: 1 or more"),
        ({"duplicates": "none"}, "duplicates: keep, drop, error, not 'none'"),
        ({"splits": HashSplits}, "preprocess.splits: @HashSplits"),
        ({"splits": "val"}, "preprocess.splits: @HashSplits"),
    ],
)
def test_values_that_are_refused(settings, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        job_settings("/data", **settings)


def test_settings_are_json_and_hold_what_decides_the_bytes():
    job = job_settings("/data", splits=QueryGallery(classes=HashSplits()))
    settings = job.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["splits"]["rule"] == "QueryGallery"
    assert settings["splits"]["classes"]["rule"] == "HashSplits"
    same = job_settings("/other", splits=job.splits, threads=9, overwrite=True)
    assert same.settings() == settings
    for change in ({"min_images": 2}, {"name": "other"}, {"duplicates": "drop"}):
        assert job_settings("/data", splits=job.splits, **change).settings() != settings
