"""References to images, which a job moves between its steps in place of pixels."""

import dataclasses
import operator
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from tripletmill.errors import UsageError
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """One image that is not yet read.

    Attributes:
      source_id: the name of the image, which is unique in a source. For a file it is the path
        relative to the input, with forward slashes.
      path: the file that a worker reads.
      class_name: the name of the image's class.
      size: the size of the image in bytes.
      modified: the time of the file's last change in nanoseconds, or 0 if `md5` is known.
      split: the split that the input names for the image, or None.
      md5: the hexadecimal MD5 of the image, or "" if nobody has computed it.
      offset: where the image's record starts in a file of tf.Example records, in bytes. It is -1 if
        the file itself is the image.
      feature: the name of the feature that holds the image in its tf.Example record.
      extra: the additional values that the image carries, one for each of the source's `columns`.
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
        # A job pickles each reference about a dozen times. The default for a frozen dataclass takes
        # ten times as long as this.
        return ImageRef, _values(self)


_values = operator.attrgetter(*(field.name for field in dataclasses.fields(ImageRef)))


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """One file that is left out, and the reason.

    Attributes:
      source_id: the name of the file, as in ImageRef.
      class_name: the name of the file's class, or "" if it has none.
      reason: one short line. Files with the same problem have the same reason.
      lost: whether the file is an image that cannot be used. It is False for files that are left
        out on purpose: hidden files, duplicates and images of small classes.
    """

    source_id: str
    class_name: str
    reason: str
    lost: bool = True


class Source(Protocol):
    """A set of images that many workers can list part by part.

    Attributes:
      columns: the names of the additional values that the images carry.
      group: the column that says which images belong together (camera, visit, item), or None.
      named_by: the feature that source ids are read from, whose values may not be unique. It is
        None if the source itself makes sure that source ids are unique.
    """

    @property
    def columns(self) -> Sequence[str]:
        return ()

    @property
    def group(self) -> str | None:
        return None

    @property
    def named_by(self) -> str | None:
        return None

    def check(self) -> None:
        """Raises UsageError if the input cannot be listed. It is called before a job starts."""

    def parts(self) -> Iterable[Any]:
        """Cuts the input into small picklable values. Raises UsageError if there is no input."""

    def list_part(self, part: Any) -> Iterator[ImageRef | Rejected]:
        """Lists each file of one part, as an ImageRef or as a Rejected."""


def printable(name: str) -> str:
    """The name, with backslash escapes in place of bytes that are not valid UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shortened(names: Iterable[str]) -> str:
    """Names separated by commas, cut to a line of at most 200 characters."""
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")


def reason_unreadable(path: str, error: OSError) -> str:
    """The reason why a file cannot be read.

    Args:
      path: the file.
      error: the error that was raised when the file was read.

    Raises:
      UsageError: the disk or network fails. This is no reason to leave out a file.
    """
    reason = storage.problem_of_file(error)
    if reason is None:
        text = error.strerror or str(error)
        raise UsageError(f"{path}: {text}; run the same command again to continue") from error
    return reason
