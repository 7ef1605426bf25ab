"""The listing of a folder of class folders, and what is wrong with a bad input."""

import os

import pytest

from preprocessing.sources.folders import FolderInput
from preprocessing.sources.inputs import InputOptions, open_source
from preprocessing.sources.references import ImageRef, Rejected
from tripletmill.errors import UsageError


def listed(path, *, labelled=True, **options):
    source = open_source(str(path), InputOptions(folder=FolderInput(**options)), labelled=labelled)
    files = [file for part in source.parts() for file in source.list_part(part)]
    images = [(f.source_id, f.class_name, f.split) for f in files if isinstance(f, ImageRef)]
    return images, [(f.source_id, f.reason, f.lost) for f in files if isinstance(f, Rejected)]


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_folder(tmp_path):
    for name in ["b/2.png", "b/1.png", "a/deep/er/x y.jpg", "a/ünï\n.jpg", "c#\n/..b.. .png"]:
        touch(tmp_path / name)
    for name in ["stray.png", "a/.DS_Store", "a/.hidden/1.png", ".git/config", "c#\n/a..b.png"]:
        touch(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "b/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b/loop").symlink_to(tmp_path / "a")
    (tmp_path / "all").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "b/pipe.png")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    images, rejected = listed(tmp_path)
    assert images == [
        ("a/ünï\n.jpg", "a", None),
        ("a/deep/er/x y.jpg", "a", None),
        ("b/1.png", "b", None),
        ("b/2.png", "b", None),
        ("c#\n/a..b.png", "c#\n", None),
    ]
    assert sorted(rejected) == [
        (".git", "hidden folder", False),
        ("\\xff", "folder name is not valid UTF-8", True),
        ("a/.DS_Store", "hidden file", False),
        ("a/.hidden/1.png", "hidden file", False),
        ("all", "link to a folder of the input", True),
        ("b/gone.png", "cannot be read: No such file or directory", True),
        ("b/loop", "symbolic link to a folder", True),
        ("b/pipe.png", "cannot be read: not a regular file", True),
        ("c#\n/..b.. .png", "hidden file", False),
        ("circle", "not in a class folder", False),
        ("empty", "class folder without a file", False),
        ("stray.png", "not in a class folder", False),
    ]


def test_nested(tmp_path):
    for name in ["dog/poodle/1.png", "dog/poodle/toy/2.png", "dog/3.png", "cat/4.png", "5.png"]:
        touch(tmp_path / name)
    images, rejected = listed(tmp_path, nested=True)
    assert sorted(images) == [
        ("cat/4.png", "cat", None),
        ("dog/3.png", "dog", None),
        ("dog/poodle/1.png", "dog/poodle", None),
        ("dog/poodle/toy/2.png", "dog/poodle/toy", None),
    ]
    assert rejected == [("5.png", "not in a class folder", False)]


def test_split_folders(tmp_path):
    for name in ["train/a/1.png", "train/a/deep/2.png", "test/b/3.png"]:
        touch(tmp_path / name)
    for name in ["labels.txt", "test/readme", ".x/a/1.png"]:
        touch(tmp_path / name)
    images, rejected = listed(tmp_path, split_folders=True)
    assert sorted(images) == [
        ("test/b/3.png", "b", "test"),
        ("train/a/1.png", "a", "train"),
        ("train/a/deep/2.png", "a", "train"),
    ]
    assert sorted(rejected) == [
        (".x", "hidden folder", False),
        ("labels.txt", "not in a class folder", False),
        ("test/readme", "not in a class folder", False),
    ]
    nested, _ = listed(tmp_path, split_folders=True, nested=True)
    assert ("train/a/deep/2.png", "a/deep", "train") in nested


def test_wrong_inputs(tmp_path):
    touch(tmp_path / "flat/1.png")
    touch(tmp_path / "list.txt")
    for name, message in [
        ("missing", "no such file or folder"),
        ("list.txt", "neither a folder"),
        ("flat", "no class folders in it; expected .*flat/CLASS/IMAGE"),
    ]:
        with pytest.raises(UsageError, match=message):
            listed(tmp_path / name)
    with pytest.raises(UsageError, match=r"expected .*flat/SPLIT/CLASS/IMAGE"):
        listed(tmp_path / "flat", split_folders=True)
    with pytest.raises(UsageError, match="local paths and gs:// only"):
        listed("s3://bucket/images")


def test_images_that_need_no_class(tmp_path):
    for name in ["2.png", "1.png", ".DS_Store", ".git/config"]:
        touch(tmp_path / "flat" / name)
    (tmp_path / "flat/gone.png").symlink_to(tmp_path / "nowhere")
    images, rejected = listed(tmp_path / "flat", labelled=False)
    assert images == [("1.png", "", None), ("2.png", "", None)]
    assert sorted(rejected) == [
        (".DS_Store", "hidden file", False),
        (".git/config", "hidden file", False),
        ("gone.png", "cannot be read: No such file or directory", True),
    ]
    with pytest.raises(UsageError, match="no class folders in it"):
        listed(tmp_path / "flat")
    # If there are class folders, they are used as classes all the same.
    touch(tmp_path / "flat/cat/1.png")
    assert listed(tmp_path / "flat", labelled=False) == listed(tmp_path / "flat")
