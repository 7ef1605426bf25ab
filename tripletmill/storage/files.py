"""What is known of a file without reading it, and what can come between two writers."""

import dataclasses
import errno


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """A file, or an object in a bucket.

    Attributes:
      path: where it lies.
      size: bytes.
      modified: time of the last change, nanoseconds.
      md5: of its content, hexadecimal; "" where nobody has computed it.
      crc32c: of its content; None where nobody has computed it.
    """

    path: str
    size: int
    modified: int
    md5: str = ""
    crc32c: int | None = None


ANY = "any"  # in place of a version: whichever is there
NOT_REGULAR = "not a regular file"
_OF_THE_FILE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}


def problem_of_file(error: OSError) -> str | None:
    """Why a file cannot be read, if it is its own fault; None for a disk or network in trouble."""
    if error.errno in _OF_THE_FILE or error.strerror == NOT_REGULAR:
        return f"cannot be read: {error.strerror}"
    return None


class Replaced(Exception):  # noqa: N818
    """A file is not the one any more that was to be replaced: somebody else has written it."""
