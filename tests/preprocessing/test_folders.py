"""What is listed, and what is wrong with an input."""

import os

import pytest

from preprocessing.errors import UsageError
from preprocessing.sources import ImageRef, Rejected, open_source


def listed(path):
    source = open_source(str(path))
    files = [file for part in source.parts() for file in source.list_part(part)]
    images = [(f.source_id, f.class_name, f.split) for f in files if isinstance(f, ImageRef)]
    return images, [(f.source_id, f.reason) for f in files if isinstance(f, Rejected)]


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_folder(tmp_path):
    for name in ["b/2.png", "b/1.png", "a/deep/er/x y.jpg", "a/ünï\n.jpg"]:
        touch(tmp_path / name)
    for name in ["stray.png", "a/.DS_Store", ".git/config"]:
        touch(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "b/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b/loop").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "b/pipe.png")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    images, rejected = listed(tmp_path)
    assert images == [
        ("a/ünï\n.jpg", "a", None),
        ("a/deep/er/x y.jpg", "a", None),
        ("b/1.png", "b", None),
        ("b/2.png", "b", None),
    ]
    assert sorted(rejected) == [
        (".git", "hidden folder"),
        ("\\xff", "folder name is not valid UTF-8"),
        ("a/.DS_Store", "hidden file"),
        ("b/gone.png", "cannot be read: No such file or directory"),
        ("b/loop", "symbolic link to a folder"),
        ("b/pipe.png", "cannot be read: not a regular file"),
        ("empty", "class folder without a file"),
        ("stray.png", "not in a class folder"),
    ]


def test_name_that_is_no_utf8(tmp_path):
    touch(tmp_path / "a/1.png")
    os.close(os.open(os.fsencode(tmp_path / "a") + b"/\xff.png", os.O_CREAT))
    assert listed(tmp_path)[1] == [("a/\\xff.png", "file name is not valid UTF-8")]


def test_csv(tmp_path):
    touch(tmp_path / "images/1.png")
    touch(tmp_path / "images/two, too.png")
    table = tmp_path / "labels.csv"
    table.write_text(
        '\ufeffpath,label,split,note\nimages/1.png, cat ,train,x\n"./images/two, too.png",dog,,\n'
    )
    assert listed(table) == (
        [("images/1.png", "cat", "train"), ("images/two, too.png", "dog", None)],
        [],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header lacks label and path"),
        (b"path,class\n1.png,cat\n", "header lacks label"),
        (b"path,label\n", "no rows"),
        (b"path,label\n1.png,cat\ngone.png,cat\n", "line 3: no such file: .*gone.png"),
        (b"path,label\n,cat\n", "line 2: no path"),
        (b"path,label\n1.png\n", "line 2: no label for 1.png"),
        (b"path,label\n1.png,cat\n./1.png,dog\n", "line 3: 1.png stands in line 2"),
        (b"path,label\n\xff\xfe,cat\n", "not a CSV file in UTF-8"),
    ],
)
def test_wrong_csv(tmp_path, content, message):
    touch(tmp_path / "1.png")
    touch(tmp_path / "labels.csv", content)
    with pytest.raises(UsageError, match=message):
        listed(tmp_path / "labels.csv")


def test_wrong_inputs(tmp_path):
    touch(tmp_path / "flat/1.png")
    touch(tmp_path / "list.txt")
    (tmp_path / "hollow/a/b").mkdir(parents=True)
    for name, message in [
        ("missing", "no such file or folder"),
        ("list.txt", "neither a folder"),
        ("flat", "no class folders in it; expected .*flat/CLASS/IMAGE"),
        ("hollow", "no images in its 1 class folders"),
    ]:
        with pytest.raises(UsageError, match=message):
            listed(tmp_path / name)
    with pytest.raises(UsageError, match="only local paths"):
        listed("gs://bucket/images")
