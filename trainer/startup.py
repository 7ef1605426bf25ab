"""TensorFlow's start, as the trainer's programs call it."""

from preprocessing.notices import import_tensorflow

__all__ = ["import_tensorflow"]
