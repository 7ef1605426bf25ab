"""What a check has to say."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
      file: its name in the data set.
      where: in the file; "" for all of it.
      what: is wrong.
      kind: a few words, the same for all problems of this kind.
      is_remark: whether it hurts nobody who reads the data set.
    """

    file: str
    where: str
    what: str
    kind: str
    is_remark: bool = False


def unreadable(file: str, error: Exception) -> Problem:
    """Says that a file is missing, or why it cannot be read."""
    if isinstance(error, FileNotFoundError):
        return Problem(file, "", "missing", "missing file")
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return Problem(file, "", f"cannot be read: {text}", "unreadable file")
