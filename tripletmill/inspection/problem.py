"""A problem that a check of a data set reports."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something in a data set that is not as it was written.

    Attributes:
      file: name of the file in the data set.
      where: the place in the file; "" for the whole file.
      message: what is wrong there.
      is_remark: whether readers of the data set can ignore the problem.
    """

    file: str
    where: str
    message: str
    is_remark: bool = False


def unreadable(file: str, error: Exception) -> Problem:
    """The problem of a file that is missing or cannot be read."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(error, FileNotFoundError):
        return Problem(file, "", "missing")
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return Problem(file, "", f"cannot be read: {text}")
