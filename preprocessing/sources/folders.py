"""A folder of class folders, on a disk or in a bucket."""

import dataclasses
import posixpath
from collections.abc import Iterator

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.sources.trees import open_tree
from tripletmill.errors import UsageError
from tripletmill.storage.files import FileInfo

PARTS = 500  # about so many: few enough to be cheap, enough for all workers
HIDDEN = ("hidden file", "hidden folder", "not in a class folder")

Part = tuple[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class FolderInput:
    """How a folder is read.

    Attributes:
      nested: whether a folder further down is a class of its own, named by its path ("dog/poodle");
        by default its files belong to the class folder at the top.
      split_folders: whether the folders at the top are splits, with the class folders in them.
    """

    nested: bool = False
    split_folders: bool = False


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A folder with one folder a class.

    Hidden files are listed as rejected, as is a file that lies in no class folder.
    """

    root: str
    options: FolderInput = FolderInput()

    columns = ()
    group = None
    named_by = None

    @property
    def _shape(self) -> str:
        return f"{self.root}/{'SPLIT/' * self.options.split_folders}CLASS/IMAGE"

    def check(self) -> None:
        for top in self._tops():
            if open_tree(self.root).folders(top)[0]:
                return
        raise UsageError(f"input {self.root}: no class folders in it; expected {self._shape}")

    def parts(self) -> Iterator[Part]:
        """Split folder or "", and class folders; "" among these is what lies beside them."""
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
            yield Rejected(relative, "", reason, lost=reason not in HIDDEN)

    def _class_folder(self, top: str, name: str) -> Iterator[ImageRef | Rejected]:
        tree = open_tree(self.root)
        folder = posixpath.join(top, name)
        empty = True
        for relative, found in tree.files(folder):
            empty = False
            class_name = self._class_of(relative, top, name)
            yield _listed(relative, found, class_name=class_name, split=top or None)
        if empty:
            yield Rejected(folder, name, "class folder without a file", lost=False)

    def _tops(self) -> list[str]:
        return open_tree(self.root).folders("")[0] if self.options.split_folders else [""]

    def _class_of(self, relative: str, top: str, name: str) -> str:
        if not self.options.nested:
            return name
        return posixpath.dirname(relative.removeprefix(f"{top}/")) or name


@dataclasses.dataclass(frozen=True)
class FlatFolderSource:
    """A folder of images without classes. Hidden files are listed as rejected."""

    root: str

    columns = ()
    group = None
    named_by = None

    def check(self) -> None:
        """Nothing to look for: an empty folder is found out when it is listed."""

    def parts(self) -> Iterator[str]:
        yield self.root

    def list_part(self, part: str) -> Iterator[ImageRef | Rejected]:
        for relative, found in open_tree(part).files(""):
            yield _listed(relative, found, class_name="", split=None)


def _listed(
    relative: str, found: FileInfo | str, *, class_name: str, split: str | None
) -> ImageRef | Rejected:
    if isinstance(found, str):
        return Rejected(relative, class_name, found, lost=found not in HIDDEN)
    return ImageRef(
        source_id=relative,
        path=found.path,
        class_name=class_name,
        size=found.size,
        modified=0 if found.md5 else found.modified,
        split=split,
        md5=found.md5,
    )
