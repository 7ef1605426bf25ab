"""TensorFlow's start: the environment that it reads then, and none of its start-up notices."""

import contextlib
import os
import sys
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Imports TensorFlow and keeps its start-up notices off the terminal.

    Raises:
      ImportError: TensorFlow is missing or broken.
    """
    # TensorFlow reads these variables only while it is imported. By default it reads 64 MB ahead,
    # which suits whole files; records of a bucket are read one at a time (Reading.stream).
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", "65536")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_stderr():
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Drops what is written to standard error, by C++ code too.

    TensorFlow (seen with 2.21) prints a notice about oneDNN before it has read
    TF_CPP_MIN_LOG_LEVEL. Why an import fails is in its exception.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
