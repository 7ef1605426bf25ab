"""Folders with files in them, on a disk or in a bucket: what is there, and what cannot be used."""

import os
import re
from collections.abc import Iterator
from typing import Protocol

from preprocessing.sources.references import printable
from tripletmill.errors import UsageError
from tripletmill.storage import bucket, local, storage
from tripletmill.storage.files import FileInfo

NOT_UTF8 = "name is not valid UTF-8"
Unusable = tuple[str, str]  # relative path, reason


class Tree(Protocol):
    """A root folder; paths are relative to it, with forward slashes, and "" is the root."""

    def folders(self, folder: str) -> tuple[list[str], list[Unusable]]:
        """Names of the folders in a folder, sorted, and of what else lies there."""

    def files(self, folder: str) -> Iterator[tuple[str, FileInfo] | Unusable]:
        """Every file below a folder, sorted within its own."""


def open_tree(root: str) -> Tree:
    """The tree below a local path or a gs:// one."""
    return BucketTree(root) if storage.is_bucket(root) else LocalTree(root)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class LocalTree:
    """A folder of a local disk. Links to files are followed, links to folders are not."""

    def __init__(self, root: str) -> None:
        self._root = root

    def folders(self, folder: str) -> tuple[list[str], list[Unusable]]:
        names, others = [], []
        with os.scandir(self._path(folder)) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if not _is_folder(entry):
                    others.append((_below(folder, printable(entry.name)), "not in a class folder"))
                elif entry.name.startswith("."):
                    others.append((_below(folder, printable(entry.name)), "hidden folder"))
                elif entry.is_symlink() and self._overlaps(entry.path):
                    others.append((_below(folder, entry.name), "link to a folder of the input"))
                elif printable(entry.name) != entry.name:
                    others.append((_below(folder, printable(entry.name)), f"folder {NOT_UTF8}"))
                else:
                    names.append(entry.name)
        return names, others

    def files(self, folder: str) -> Iterator[tuple[str, FileInfo] | Unusable]:
        unreadable: list[OSError] = []
        for path, folders, files in os.walk(self._path(folder), onerror=unreadable.append):
            folders.sort()
            for name in folders:
                if os.path.islink(os.path.join(path, name)):
                    relative = self._relative(os.path.join(path, name))
                    yield printable(relative), "symbolic link to a folder"
            for name in sorted(files):
                yield self._file(os.path.join(path, name), folder)
        for error in unreadable:
            yield printable(self._relative(error.filename)), _problem(error)

    def _file(self, path: str, top: str) -> tuple[str, FileInfo] | Unusable:
        relative = self._relative(path)
        if _is_hidden(relative, top):
            return printable(relative), "hidden file"
        if printable(relative) != relative:
            return printable(relative), f"file {NOT_UTF8}"
        try:
            return relative, local.stat(path)
        except OSError as error:
            return relative, _problem(error)

    def _overlaps(self, link: str) -> bool:
        """Whether a link leads to the root, above it or below it: all would be there twice."""
        root, target = os.path.realpath(self._root), os.path.realpath(link)
        return os.path.commonpath([root, target]) in (root, target)

    def _path(self, relative: str) -> str:
        return os.path.join(self._root, relative) if relative else self._root

    def _relative(self, path: str) -> str:
        return path[len(self._root) :].lstrip("/")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        _problem(error)  # a link in a circle, say, is none
        return False


def _problem(error: OSError) -> str:
    """Why a file or folder is left out; raises UsageError where nothing may be left out for it."""
    problem = storage.problem_of_file(error)
    if problem is None:
        what = f"{error.filename}: {error.strerror}; run the same command again"
        raise UsageError(what) from error
    return problem


class BucketTree:
    """A folder of a bucket. Names are taken as they are: `..` and `//` mean nothing there."""

    def __init__(self, root: str) -> None:
        self._root = root

    def folders(self, folder: str) -> tuple[list[str], list[Unusable]]:
        found, files = bucket.list_folder(self._path(folder))
        names = [name for name in found if name and not name.startswith(".")]
        others = [(self._relative(info.path), "not in a class folder") for info in files]
        for name in sorted({*found} - {*names}):
            reason = "hidden folder" if name else "folder without a name"
            others.append((_below(folder, name) or "/", reason))
        return names, others

    def files(self, folder: str) -> Iterator[tuple[str, FileInfo] | Unusable]:
        for info in bucket.list_tree(self._path(folder)):
            relative = self._relative(info.path)
            if _is_hidden(relative, folder):
                yield relative, "hidden file"
            else:
                yield relative, info

    def _path(self, relative: str) -> str:
        return storage.join(self._root, relative) if relative else self._root

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root.rstrip("/") + "/")


def _is_hidden(relative: str, top: str) -> bool:
    """Whether a file or a folder on the way to it from `top` has a name that begins with a dot."""
    return re.search(r"(^|/)\.", relative.removeprefix(f"{top}/")) is not None
