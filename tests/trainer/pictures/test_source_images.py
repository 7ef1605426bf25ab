"""Pictures by source id, from records, folders and manifests."""

import numpy as np
import pytest

from preprocessing.sources.manifests import ManifestInput, open_manifest
from tests.fixtures.images import corners, encode, quadrants, rotated, save
from trainer.pictures.source_images import FilePictures, RecordPictures, thumbnail_or_none
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_index
from tripletmill.images import ImageSettings, canonical_jpeg


def test_records(data_dir):
    pictures = RecordPictures(str(data_dir))
    source = data_dir.parent / "images"
    settings = ImageSettings(short_side=32)
    for split in ("train", "test"):
        for name in load_index(str(data_dir), split).column("source_id").to_pylist()[::7]:
            expected = canonical_jpeg((source / name).read_bytes(), settings).jpeg
            assert pictures.of(name, split) == pictures.of(name) == expected
            # A split that the data set does not have is no error.
            assert pictures.of(name, "gallery") == expected
            assert pictures.of(name, "val") is None
    assert pictures.of("nobody") is None


def test_folder(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.png").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"secret")
    pictures = FilePictures(str(tmp_path / "in"))
    assert pictures.of("a/x.png", "test") == b"x"
    outside = ("../secret", "a/../../secret", str(tmp_path / "secret"), "..")
    for name in ("a", "a/y.png", "", *outside):
        assert pictures.of(name) is None
    with pytest.raises(UsageError, match=r"no: no such folder, and no manifest"):
        FilePictures(str(tmp_path / "no"))


def test_list(tmp_path, monkeypatch):
    """The source ids are paths relative to the manifest, also above its folder."""
    for name in ("photos/a/x.png", "lists/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    absolute = tmp_path / "photos/a/x.png"
    (tmp_path / "lists/a.csv").write_text(f"path\n{absolute}\ny.png\n../photos/gone.png\n")
    source = open_manifest(str(tmp_path / "lists/a.csv"), ManifestInput(), labelled=False)
    ids = [each.source_id for part in source.parts() for each in source.list_part(part)]
    assert ids == ["../photos/a/x.png", "y.png", "../photos/gone.png"]
    monkeypatch.chdir(tmp_path / "lists")
    for path in (str(tmp_path / "lists/a.csv"), "a.csv"):
        pictures = FilePictures(path)
        found = [pictures.of(each) for each in ids]
        assert found == [b"photos/a/x.png", b"lists/y.png", None]
    with pytest.raises(UsageError, match=r"b.csv: no such folder, and no manifest"):
        FilePictures("b.csv")


def test_thumbnails_are_upright():
    seen = thumbnail_or_none(rotated(6, "JPEG", (96, 192)))
    assert seen.shape == (256, 128, 3)
    upright = corners(save(quadrants((96, 192)), "PNG"))
    halves = [seen[y : y + 64, x : x + 32] for y in (32, 160) for x in (16, 80)]
    np.testing.assert_allclose([half.mean(axis=(0, 1)) for half in halves], upright, atol=6)
    assert thumbnail_or_none(encode("L")).shape == (128, 192, 3)
    assert thumbnail_or_none(None) is None
    assert thumbnail_or_none(b"no image") is None
