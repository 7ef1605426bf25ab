"""What a loss is given: checked, and in a type to compute in."""

import tensorflow as tf

from tripletmill.errors import UsageError


def check_margin(margin: float) -> float:
    """The margin as a number, 0 or more."""
    try:
        value = float(margin)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UsageError(f"margin {margin}: a number, 0 or more")
    return value


def flat_labels(labels: tf.Tensor) -> tf.Tensor:
    """[b] int32, or int64 where that is what they are or what holds them."""
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_integer:
        raise UsageError(
            f"labels are {labels.dtype.name}: integers, one a row (for a function in"
            " model.compile Keras makes them floats: use the class)"
        )
    if labels.shape.rank not in (None, 1) and labels.shape[1:] not in ([1], [None]):
        raise UsageError(f"labels have the shape {labels.shape}: [b] or [b, 1], not one-hot")
    wide = labels.dtype in (tf.int64, tf.uint64, tf.uint32)
    return tf.cast(tf.reshape(labels, [-1]), tf.int64 if wide else tf.int32)


def check_shapes(labels: tf.Tensor, embeddings: tf.Tensor) -> None:
    """Embeddings [b, D] of floats, and as many labels."""
    check_embeddings(embeddings)
    rows, given = embeddings.shape[0], labels.shape[0]
    if None in (rows, given):
        tf.debugging.assert_equal(tf.size(labels), tf.shape(embeddings)[0], "labels: one a row")
    elif rows != given:
        raise UsageError(f"{given} labels for {rows} embeddings: one each")


def check_embeddings(embeddings: tf.Tensor) -> None:
    """[b, D] of floats."""
    if not embeddings.dtype.is_floating:
        raise UsageError(f"embeddings are {embeddings.dtype.name}: floats [b, D]")
    if embeddings.shape.rank != 2:
        raise UsageError(f"embeddings have the shape {embeddings.shape}: [b, D]")


def computable(x: tf.Tensor) -> tf.Tensor:
    """In float32, or float64 where that is what it is."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
