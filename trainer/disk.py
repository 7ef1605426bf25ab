"""Files of a run that cannot be written, as on a full disk: one line that names them."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from preprocessing.errors import UsageError, first_line

GO_ON = "what was saved before is kept; make room, and the same command goes on"


@contextlib.contextmanager
def written(path: str) -> Iterator[None]:
    """Raises UsageError, with what to do, where a file cannot be written.

    Args:
      path: of the file, or of the folder where TensorFlow names its files itself.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        why = os.strerror(number) if number else first_line(error)
        raise UsageError(f"{path} could not be written ({why}); {GO_ON}") from error
