"""What storage says about a file without reading it, and the errors of single files."""

import dataclasses
import errno


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """A file on a local disk, or an object in a bucket.

    Attributes:
      path: local path or gs:// path.
      size: bytes, 0 or more.
      modified: time of the last change in nanoseconds since 1970; 0 if it is unknown.
      md5: MD5 of the content, hexadecimal; "" if it is unknown, as on a local disk.
      crc32c: CRC-32C of the content; None if it is unknown, as on a local disk.
    """

    path: str
    size: int
    modified: int
    md5: str = ""
    crc32c: int | None = None


ANY = "any"  # stands for any version, or none, that a new file may replace
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
    """Says in one line why a file cannot be read; None if the disk or the network is to blame."""
    if error.errno in _OF_THE_FILE or error.strerror == NOT_REGULAR:
        return f"cannot be read: {error.strerror}"
    return None


class Replaced(Exception):  # noqa: N818
    """Somebody else has written the file since the version that was to be replaced."""
