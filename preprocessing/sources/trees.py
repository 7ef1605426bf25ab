"""Lists the folders and files below a root folder, and says which of them cannot be used.

The root folder lies on a local disk or in a bucket.
"""

import os
import re
from collections.abc import Iterator
from typing import Protocol

from preprocessing.sources.references import printable, reason_unreadable
from tripletmill.storage import bucket, local, storage
from tripletmill.storage.files import FileInfo

HIDDEN_FILE, HIDDEN_FOLDER = "hidden file", "hidden folder"
NOT_IN_A_CLASS = "not in a class folder"
NOT_UTF8 = "name is not valid UTF-8"
Unusable = tuple[str, str]  # relative path, reason


class Tree(Protocol):
    """A root folder. Paths are relative to it and have forward slashes; "" is the root itself."""

    def folders(self, folder: str) -> tuple[list[str], list[Unusable]]:
        """The names of the usable folders in a folder, sorted, and the other entries there."""

    def files(self, folder: str) -> Iterator[tuple[str, FileInfo] | Unusable]:
        """Every file below a folder. The files of each folder are sorted."""


def open_tree(root: str) -> Tree:
    """The tree below a local path or a gs:// path."""
    return BucketTree(root) if storage.is_bucket(root) else LocalTree(root)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _Rooted:
    """A tree that knows its root folder."""

    def __init__(self, root: str) -> None:
        self._root = root

    def _path(self, relative: str) -> str:
        return storage.join(self._root, relative) if relative else self._root


class LocalTree(_Rooted):
    """A folder on a local disk.

    Links to files are followed. `folders` lists links to folders like folders, unless they lead
    back into the tree. `files` does not follow the links to folders that it meets.
    """

    def folders(self, folder: str) -> tuple[list[str], list[Unusable]]:
        names, others = [], []
        with os.scandir(self._path(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                problem = self._problem_of_folder(entry)
                if problem:
                    others.append((_below(folder, printable(entry.name)), problem))
                else:
                    names.append(entry.name)
        return names, others

    def _problem_of_folder(self, entry: os.DirEntry) -> str:
        """Why an entry of a folder is not used as a folder, or "" if it is used."""
        if not _is_folder(entry):
            return NOT_IN_A_CLASS
        if entry.name.startswith("."):
            return HIDDEN_FOLDER
        if entry.is_symlink() and self._overlaps(entry.path):
            return "link to a folder of the input"
        return "" if printable(entry.name) == entry.name else f"folder {NOT_UTF8}"

    def files(self, folder: str) -> Iterator[tuple[str, FileInfo] | Unusable]:
        errors: list[OSError] = []
        for path, folders, files in os.walk(self._path(folder), onerror=errors.append):
            folders.sort()
            for name in folders:
                if os.path.islink(os.path.join(path, name)):
                    relative = self._relative(os.path.join(path, name))
                    yield printable(relative), "symbolic link to a folder"
            for name in sorted(files):
                yield self._file(os.path.join(path, name), folder)
        for error in errors:
            yield printable(self._relative(error.filename)), _reason(error)

    def _file(self, path: str, top: str) -> tuple[str, FileInfo] | Unusable:
        relative = self._relative(path)
        if _is_hidden(relative, top):
            return printable(relative), HIDDEN_FILE
        if printable(relative) != relative:
            return printable(relative), f"file {NOT_UTF8}"
        try:
            return relative, local.stat(path)
        except OSError as error:
            return relative, _reason(error)

    def _overlaps(self, link: str) -> bool:
        """Whether a link leads to the root, above it or below it, so that files appear twice."""
        root, target = os.path.realpath(self._root), os.path.realpath(link)
        return os.path.commonpath([root, target]) in (root, target)

    def _relative(self, path: str) -> str:
        return path[len(self._root) :].lstrip("/")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        _reason(error)
        return False  # for example a link to itself


def _reason(error: OSError) -> str:
    return reason_unreadable(error.filename, error)


class BucketTree(_Rooted):
    """A folder in a bucket. Names are taken as they are: `..` and `//` have no special meaning."""

    def folders(self, folder: str) -> tuple[list[str], list[Unusable]]:
        folders, files = bucket.list_folder(self._path(folder))
        names = [name for name in folders if name and not name.startswith(".")]
        others = [(self._relative(info.path), NOT_IN_A_CLASS) for info in files]
        for name in sorted({*folders} - {*names}):
            reason = HIDDEN_FOLDER if name else "folder without a name"
            others.append((_below(folder, name) or "/", reason))
        return names, others

    def files(self, folder: str) -> Iterator[tuple[str, FileInfo] | Unusable]:
        for info in bucket.list_tree(self._path(folder)):
            relative = self._relative(info.path)
            if _is_hidden(relative, folder):
                yield relative, HIDDEN_FILE
            else:
                yield relative, info

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root.rstrip("/") + "/")


def _is_hidden(relative: str, top: str) -> bool:
    """Whether the name of a file, or of a folder between `top` and the file, begins with a dot."""
    return re.search(r"(^|/)\.", relative.removeprefix(f"{top}/")) is not None
