"""TensorFlow's start: what it reads from the environment then, and without its notices."""

import os
import re
import sys
import tempfile

NOTICE = re.compile(r"^(I\d{4} |WARNING: All log messages before absl|To enable the following)")


def import_tensorflow() -> None:
    """Imports TensorFlow and drops the notices that it prints while doing so.

    They come from C++, before any of its settings apply, so what goes to standard error meanwhile
    is held back; all else that was printed is passed on.
    """
    # Read when TensorFlow is imported, and not later. Its own 64 MB are for whole files; records
    # of a bucket are read one at a time (Reading.stream).
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", "65536")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held_back:
        stderr = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            import tensorflow as tf

            tf.get_logger().setLevel("ERROR")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held_back.seek(0)
            for line in held_back.read().decode(errors="replace").splitlines():
                if not NOTICE.match(line):
                    print(line, file=sys.stderr)
