"""Paths of objects, and what is read from the library's objects and errors; no bucket is needed."""

import datetime
import types

import pytest
import requests
from google.api_core import exceptions
from google.cloud.storage.exceptions import DataCorruption

from tripletmill.storage import bucket
from tripletmill.storage.files import FileInfo, Replaced


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("gs://photos/a/b.jpg", ("photos", "a/b.jpg")),
        ("gs://photos/a/", ("photos", "a/")),
        ("gs://photos/", ("photos", "")),
        ("gs://photos", ("photos", "")),
        ("gs://", ("", "")),
    ],
)
def test_bucket_and_name_of_a_path(path, parts):
    assert bucket.split(path) == parts


def test_absolute():
    assert bucket.absolute("gs://photos/a//") == bucket.absolute("gs://photos/a") == "gs://photos/a"


def test_what_is_known_of_an_object():
    changed = datetime.datetime(1970, 1, 1, 0, 0, 2, tzinfo=datetime.UTC)
    blob = types.SimpleNamespace(
        name="a/b", size=3, updated=changed, md5_hash="AQID", crc32c="AAABAg=="
    )
    info = FileInfo("gs://photos/a/b", 3, 2_000_000_000, md5="010203", crc32c=258)
    assert bucket._info("photos", blob) == info
    blob = types.SimpleNamespace(name="a", size=0, updated=None, md5_hash=None, crc32c=None)
    assert bucket._info("photos", blob) == FileInfo("gs://photos/a", 0, 0)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (exceptions.NotFound("a"), FileNotFoundError, "No such object or bucket: 'gs://photos/a'"),
        (exceptions.PreconditionFailed("a"), Replaced, "gs://photos/a"),
        (exceptions.Forbidden("not\n  yours"), OSError, "Cloud Storage: 403 not yours: 'gs://ph"),
        (requests.ConnectionError("x" * 1000), OSError, f"Cloud Storage: {'x' * 300}: 'gs://ph"),
        (DataCorruption(None, "other bytes"), OSError, "Cloud Storage: other bytes"),
        (KeyError("a mistake in a program"), KeyError, "a mistake"),
    ],
)
def test_errors(error, expected, message):
    with pytest.raises(expected, match=message), bucket._errors("gs://photos/a"):
        raise error
