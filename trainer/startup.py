"""TensorFlow's start: what it reads from the environment then, and without its notices."""

import os

from tripletmill.cli.notices import without_notices


def import_tensorflow() -> None:
    """Imports TensorFlow, and drops the notices that it prints while doing so."""
    # Read when TensorFlow is imported, and not later. Its own 64 MB are for whole files; records
    # of a bucket are read one at a time (Reading.stream).
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", "65536")
    with without_notices():
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
