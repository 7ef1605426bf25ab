"""Checks the arguments of a loss and converts them to the types that the loss computes in."""

from collections.abc import Sequence

import tensorflow as tf

from tripletmill.errors import UsageError


def check_margin(margin: float) -> float:
    """Returns the margin as a float.

    Raises:
      UsageError: the margin is not a finite number that is 0 or more.
    """
    try:
        value = float(margin)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UsageError(f"margin {margin}: must be a number, 0 or more")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError unless the value of the argument `name` is one of the choices."""
    if value not in choices:
        raise UsageError(f"{name} {value!r}: must be one of {', '.join(choices)}")


def flat_labels(labels: tf.Tensor) -> tf.Tensor:
    """Flattens labels and converts them to a signed type that holds each of their values.

    Args:
      labels: [b] or [b, 1] integers of any type.

    Returns:
      [b] int64 if the labels are int64, uint64 or uint32, else [b] int32.

    Raises:
      UsageError: the labels are not integers, or have another shape.
    """
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_integer:
        raise UsageError(
            f"labels are {labels.dtype.name}: must be integers (Keras casts the labels to floats"
            " for a loss function in model.compile: use TripletHardLoss or TripletSemiHardLoss)"
        )
    if labels.shape.rank not in (None, 1) and labels.shape[1:] not in ([1], [None]):
        raise UsageError(
            f"labels have the shape {labels.shape}: must be [b] or [b, 1], not one-hot"
        )
    needs_int64 = labels.dtype in (tf.int64, tf.uint64, tf.uint32)
    return tf.cast(tf.reshape(labels, [-1]), tf.int64 if needs_int64 else tf.int32)


def check_labels_and_embeddings(labels: tf.Tensor, embeddings: tf.Tensor) -> None:
    """Checks that there is one label for each embedding.

    Args:
      labels: [b].
      embeddings: [b, D] floats.

    Raises:
      UsageError: the embeddings are not [b, D] floats, or the numbers of rows differ. If a number
        is not known until the step runs, tf.errors.InvalidArgumentError is raised then.
    """
    check_embeddings(embeddings)
    num_embeddings, num_labels = embeddings.shape[0], labels.shape[0]
    if None in (num_embeddings, num_labels):
        tf.debugging.assert_equal(
            tf.size(labels), tf.shape(embeddings)[0], "there must be one label for each embedding"
        )
    elif num_embeddings != num_labels:
        raise UsageError(
            f"{num_labels} labels for {num_embeddings} embeddings: each embedding needs one label"
        )


def check_embeddings(embeddings: tf.Tensor) -> None:
    """Raises UsageError unless the embeddings are floats of shape [b, D]."""
    if not embeddings.dtype.is_floating:
        raise UsageError(f"embeddings are {embeddings.dtype.name}: must be floats")
    if embeddings.shape.rank != 2:
        raise UsageError(f"embeddings have the shape {embeddings.shape}: must be [b, D]")


def as_float32_or_float64(x: tf.Tensor) -> tf.Tensor:
    """Casts float16 and bfloat16 to float32. The losses compute in float32 or float64."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
