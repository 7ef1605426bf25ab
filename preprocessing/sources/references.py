"""References to images: what a job shuffles in place of pixels."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """One image, not yet read.

    Attributes:
      source_id: its name, relative to the input, with forward slashes; unique in a source.
      path: the file that a worker reads.
      class_name: its class.
      size: bytes of the image.
      modified: time of the last change of the file, nanoseconds; 0 where `md5` says more.
      split: the split that the input asks for, or None.
      md5: of the image, hexadecimal; "" where nobody has computed it.
      offset: where its record starts, if the file holds tf.Example records; -1: it is the image.
      feature: of that tf.Example, the one that holds the image.
      extra: further values, one for each of the source's `columns`.
    """

    source_id: str
    path: str
    class_name: str
    size: int
    modified: int = 0
    split: str | None = None
    md5: str = ""
    offset: int = -1
    feature: str = ""
    extra: tuple[str | None, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A tenth of the time that a frozen dataclass takes otherwise, a dozen times an image.
        return ImageRef, (
            self.source_id,
            self.path,
            self.class_name,
            self.size,
            self.modified,
            self.split,
            self.md5,
            self.offset,
            self.feature,
            self.extra,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """One file that is left out, and why.

    Attributes:
      source_id: as of ImageRef.
      class_name: its class, "" where it has none.
      reason: one short line, the same for the same kind.
      lost: whether it is an image that cannot be used; hidden files, duplicates and images of small
        classes are left out on purpose.
    """

    source_id: str
    class_name: str
    reason: str
    lost: bool = True


class Source(Protocol):
    """A set of labelled images that can be listed part by part, by many workers.

    Attributes:
      columns: names of the further values that its images carry.
      group: the one of them that says which images belong together (camera, visit, item), if any.
      named_by: what gives images their source ids, where these may not be unique; else None.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def group(self) -> str | None: ...

    @property
    def named_by(self) -> str | None: ...

    def check(self) -> None:
        """Raises UsageError, before a job starts, where it is plain that nothing can be listed."""

    def parts(self) -> Iterable[Any]:
        """Cuts the input into small picklable values; raises UsageError where there is nothing."""

    def list_part(self, part: Any) -> Iterator[ImageRef | Rejected]:
        """Everything in one part: each file as one or the other."""


def printable(name: str) -> str:
    """The name, with bytes that are no UTF-8 as backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
