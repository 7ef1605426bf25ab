"""Lists images in a folder of class folders, on a local disk or in a bucket."""

import dataclasses
import posixpath
from collections.abc import Iterator

from preprocessing.sources.references import ImageRef, Rejected, Source
from preprocessing.sources.trees import HIDDEN_FILE, HIDDEN_FOLDER, NOT_IN_A_CLASS, open_tree
from tripletmill.errors import UsageError
from tripletmill.storage.files import FileInfo

PARTS = 500  # at most about this many: few enough to be cheap, and enough for all workers
LEFT_OUT_ON_PURPOSE = (HIDDEN_FILE, HIDDEN_FOLDER, NOT_IN_A_CLASS)

Part = tuple[str, tuple[str, ...]]  # split folder and class folders


@dataclasses.dataclass(frozen=True)
class FolderInput:
    """How a folder is read.

    Attributes:
      nested: whether each folder inside a class folder is a class of its own, named by its path
        ("dog/poodle"). By default, its files belong to the class folder that it lies in.
      split_folders: whether the folders at the top are splits that hold the class folders.
    """

    nested: bool = False
    split_folders: bool = False


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
    """A folder with one folder per class.

    Hidden files, and files that lie in no class folder, are listed as rejected.
    """

    root: str
    options: FolderInput = FolderInput()

    def check(self) -> None:
        for top in self._tops():
            if open_tree(self.root).folders(top)[0]:
                return
        expected = f"{self.root}/{'SPLIT/' * self.options.split_folders}CLASS/IMAGE"
        raise UsageError(f"input {self.root}: no class folders in it; expected {expected}")

    def parts(self) -> Iterator[Part]:
        """Yields split folders, each with some of its class folders.

        The split folder is "" for the folder itself. The class folder "" stands for the files that
        lie beside the class folders.
        """
        tree = open_tree(self.root)
        if self.options.split_folders:
            yield "", ("",)
        for top in self._tops():
            names = ["", *tree.folders(top)[0]]
            step = 1 + len(names) // PARTS
            for start in range(0, len(names), step):
                yield top, tuple(names[start : start + step])

    def list_part(self, part: Part) -> Iterator[ImageRef | Rejected]:
        top, names = part
        for name in names:
            yield from self._class_folder(top, name) if name else self._beside(top)

    def _beside(self, top: str) -> Iterator[Rejected]:
        for relative, reason in open_tree(self.root).folders(top)[1]:
            yield Rejected(relative, "", reason, lost=reason not in LEFT_OUT_ON_PURPOSE)

    def _class_folder(self, top: str, name: str) -> Iterator[ImageRef | Rejected]:
        tree = open_tree(self.root)
        folder = posixpath.join(top, name)
        empty = True
        for relative, file in tree.files(folder):
            empty = False
            class_name = self._class_of(relative, top, name)
            yield _listed(relative, file, class_name=class_name, split=top or None)
        if empty:
            yield Rejected(folder, name, "class folder without a file", lost=False)

    def _tops(self) -> list[str]:
        return open_tree(self.root).folders("")[0] if self.options.split_folders else [""]

    def _class_of(self, relative: str, top: str, name: str) -> str:
        if not self.options.nested:
            return name
        return posixpath.dirname(relative.removeprefix(f"{top}/")) or name


@dataclasses.dataclass(frozen=True)
class FlatFolderSource(Source):
    """A folder of images without classes. Hidden files are listed as rejected."""

    root: str

    def check(self) -> None:
        """Checks nothing. An empty folder is an error when it is listed."""

    def parts(self) -> Iterator[str]:
        yield self.root

    def list_part(self, part: str) -> Iterator[ImageRef | Rejected]:
        for relative, file in open_tree(part).files(""):
            yield _listed(relative, file, class_name="", split=None)


def _listed(
    relative: str, file: FileInfo | str, *, class_name: str, split: str | None
) -> ImageRef | Rejected:
    """The reference to a file. If `file` is a reason, the file is rejected for this reason."""
    if isinstance(file, str):
        return Rejected(relative, class_name, file, lost=file not in LEFT_OUT_ON_PURPOSE)
    return ImageRef(
        source_id=relative,
        path=file.path,
        class_name=class_name,
        size=file.size,
        modified=0 if file.md5 else file.modified,
        split=split,
        md5=file.md5,
    )
