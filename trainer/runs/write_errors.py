"""Errors of files of a run that cannot be written, for instance because the disk is full."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from tripletmill.errors import UsageError, first_line

GO_ON = "what was saved before is kept; make room, and the same command goes on"


@contextlib.contextmanager
def naming_write_errors(path: str) -> Iterator[None]:
    """Turns an error of writing into a UsageError that names the file and says what to do.

    Args:
      path: path of the file, or of its folder if TensorFlow chooses the name of the file.

    Raises:
      UsageError: the file cannot be written.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        why = os.strerror(number) if number else first_line(error)
        raise UsageError(f"{path} could not be written ({why}); {GO_ON}") from error
