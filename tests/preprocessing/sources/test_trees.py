"""Folders and files below a root, on a local disk and in a bucket."""

import errno
import os

import pytest

from preprocessing.sources.trees import BucketTree, LocalTree, open_tree
from tripletmill.errors import UsageError
from tripletmill.storage import bucket, local
from tripletmill.storage.files import FileInfo


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_the_path_decides_the_kind_of_tree(tmp_path):
    assert isinstance(open_tree(str(tmp_path)), LocalTree)
    assert isinstance(open_tree("gs://bucket/images"), BucketTree)


def test_local_folders(tmp_path):
    for name in ("b/1.png", "a/c/2.png", "a/.cache/3", ".git/config", "4.png", ".hidden"):
        touch(tmp_path / "root" / name)
    touch(tmp_path / "elsewhere/5.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/parent").symlink_to(tmp_path)
    (tmp_path / "root/inside").symlink_to(tmp_path / "root/a")
    (tmp_path / "root/itself").symlink_to("itself")
    os.mkdir(os.fsencode(tmp_path) + b"/root/\xff")
    tree = open_tree(str(tmp_path / "root"))
    names, others = tree.folders("")
    assert names == ["a", "b", "linked"]
    assert dict(others) == {
        ".git": "hidden folder",
        ".hidden": "not in a class folder",
        "4.png": "not in a class folder",
        "inside": "link to a folder of the input",
        "itself": "not in a class folder",
        "parent": "link to a folder of the input",
        "\\xff": "folder name is not valid UTF-8",
    }
    assert tree.folders("a") == (["c"], [("a/.cache", "hidden folder")])
    assert [relative for relative, _ in tree.files("linked")] == ["linked/5.png"]


def test_local_files(tmp_path):
    for name in ("top/b.png", "top/a.png", "top/d/c.png", "top/.x/e.png", "top/.f", "other/g"):
        touch(tmp_path / name)
    (tmp_path / "top/link.png").symlink_to("a.png")
    (tmp_path / "top/gone.png").symlink_to("none")
    (tmp_path / "top/folder").symlink_to("d")
    os.close(os.open(os.fsencode(tmp_path) + b"/top/\xff", os.O_CREAT))
    files = dict(open_tree(str(tmp_path)).files("top"))
    infos = {name: info for name, info in files.items() if isinstance(info, FileInfo)}
    assert list(infos) == ["top/a.png", "top/b.png", "top/link.png", "top/d/c.png"]
    assert infos["top/a.png"] == local.stat(str(tmp_path / "top/a.png"))
    assert {name: reason for name, reason in files.items() if name not in infos} == {
        "top/.f": "hidden file",
        "top/.x/e.png": "hidden file",
        "top/folder": "symbolic link to a folder",
        "top/gone.png": "cannot be read: No such file or directory",
        "top/\\xff": "file name is not valid UTF-8",
    }


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_local_folder_that_cannot_be_read(tmp_path, monkeypatch, number):
    """A folder without permission is left out. A failing disk stops the job."""
    for name in ("top/1.png", "top/closed/2.png"):
        touch(tmp_path / name)
    scandir = os.scandir

    def fail(path):
        if os.path.basename(path) == "closed":
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    files = open_tree(str(tmp_path)).files("top")
    assert next(files)[0] == "top/1.png"
    if number == errno.EACCES:
        assert list(files) == [("top/closed", "cannot be read: Permission denied")]
    else:
        problem = "top/closed: Input/output error; run the same command again to continue$"
        with pytest.raises(UsageError, match=problem):
            next(files)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_tree(str(tmp_path)).folders("none")


def test_a_folder_of_a_bucket(monkeypatch):
    info = FileInfo("gs://bucket/images/1.png", 1, 0)
    asked = []

    def list_folder(path):
        asked.append(path)
        return ["", ".git", "a", "b"], [info]

    monkeypatch.setattr(bucket, "list_folder", list_folder)
    tree = open_tree("gs://bucket/images")
    assert tree.folders("") == (
        ["a", "b"],
        [
            ("1.png", "not in a class folder"),
            ("/", "folder without a name"),
            (".git", "hidden folder"),
        ],
    )
    tree.folders("a")
    assert asked == ["gs://bucket/images", "gs://bucket/images/a"]


def test_files_of_a_bucket(monkeypatch):
    names = [".x/1", "a/1.png", "a/b/.2", "a/b/3", "a//4"]
    infos = [FileInfo(f"gs://bucket/images/{name}", 1, 0) for name in names]
    monkeypatch.setattr(bucket, "list_tree", lambda path: iter(infos))
    assert list(open_tree("gs://bucket/images").files("")) == [
        (".x/1", "hidden file"),
        ("a/1.png", infos[1]),
        ("a/b/.2", "hidden file"),
        ("a/b/3", infos[3]),
        ("a//4", infos[4]),
    ]
