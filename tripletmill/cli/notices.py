"""Standard error without the notices that TensorFlow prints while it is imported."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

NOTICE = re.compile(
    rb"I\d{4} [\d:.]+ +\d+ \S+\] [^\n]*\n?"
    rb"|^(?:WARNING: All log messages before absl|To enable the following)[^\n]*\n?",
    re.MULTILINE,
)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Drops notices from what the block prints; all else is printed when it ends.

    They come from C++, before any setting of TensorFlow's applies, so what goes to standard error
    meanwhile, from whichever thread, is held back.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held_back:
        stderr = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held_back.seek(0)
            rest = NOTICE.sub(b"", held_back.read())
            while rest:
                rest = rest[os.write(2, rest) :]


def import_tensorflow() -> None:
    """Imports TensorFlow, and drops the notices that it prints while doing so."""
    # Read when TensorFlow is imported, and not later. Its own 64 MB are for whole files; records
    # of a bucket are read one at a time (Reading.stream).
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", "65536")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_notices():
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
