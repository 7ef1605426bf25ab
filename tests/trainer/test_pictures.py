"""Pictures by source id, from records and from folders."""

import numpy as np
import pytest

from preprocessing.errors import UsageError
from preprocessing.images import ImageSettings, canonical_jpeg
from preprocessing.index import load_index
from tests.fixtures.images import corners, encode, quadrants, rotated, save
from trainer.pictures import FolderPictures, RecordPictures, thumbnail, thumbnail_or_none


def test_records(data_dir):
    pictures = RecordPictures(str(data_dir))
    source = data_dir.parent / "images"
    settings = ImageSettings(short_side=32)
    for split in ("train", "test"):
        for name in load_index(str(data_dir), split).column("source_id").to_pylist()[::7]:
            expected = canonical_jpeg((source / name).read_bytes(), settings).jpeg
            assert pictures.of(name, split) == pictures.of(name) == expected
            # A split that the data set lacks says nothing.
            assert pictures.of(name, "gallery") == expected
            assert pictures.of(name, "val") is None
    assert pictures.of("nobody") is None


def test_folder(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.png").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"secret")
    pictures = FolderPictures(str(tmp_path / "in"))
    assert pictures.of("a/x.png", "test") == b"x"
    outside = ("../secret", "a/../../secret", str(tmp_path / "secret"), "..")
    for name in ("a", "a/y.png", "", *outside):
        assert pictures.of(name) is None
    with pytest.raises(UsageError, match="no such folder"):
        FolderPictures(str(tmp_path / "no"))


def test_thumbnails_are_upright():
    seen = thumbnail(rotated(6, "JPEG", (96, 192)))
    assert seen.shape == (256, 128, 3)
    upright = corners(save(quadrants((96, 192)), "PNG"))
    halves = [seen[y : y + 64, x : x + 32] for y in (32, 160) for x in (16, 80)]
    np.testing.assert_allclose([half.mean(axis=(0, 1)) for half in halves], upright, atol=6)
    assert thumbnail(encode("L")).shape == (128, 192, 3)
    assert thumbnail_or_none(None) is None
    assert thumbnail_or_none(b"no image") is None
