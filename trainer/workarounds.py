"""Workarounds for gaps and faults of TensorFlow and Keras, in one place.

Each function says on which version the gap was seen. tests/trainer/test_workarounds.py shows each
gap without its workaround, so that a test fails once a new version no longer needs it.

The workarounds of `tripletmill.losses` are in its modules, since that package imports nothing from
this one.
"""

import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import keras
import tensorflow as tf


def leave_gradients_as_they_are(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimizer apply gradients that are summed over the replicas already.

    Keras sums gradients over the replicas within `apply`, and clips them before that sum. There is
    no public switch. Seen with Keras 3.15.1.
    """
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables


def saved_variables(model: keras.Model) -> list[tf.Variable]:
    """All variables of a model, for a `tf.train.Checkpoint`.

    `tf.train.Checkpoint(model=model)` leaves out the seeds of Dropout and other random layers, and
    `assert_consumed` does not notice. Seen with Keras 3.15.1.
    """
    return [variable.value for variable in model.variables]


def all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """All layers of a model, including the layers of models within it.

    The public `model.layers` does not look into models within the model. Seen with Keras 3.15.1.
    """
    return iter(model._flatten_layers(include_self=False))


def write_start_event(writer: tf.summary.SummaryWriter, step: int) -> None:
    """Writes the event by which TensorBoard forgets what it has read of this and later steps.

    No public function writes events that are not summaries. Seen with TensorFlow 2.21.0.
    """
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=start)
    tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())


def kept_with(strategy: tf.distribute.Strategy, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` returns, made once for each strategy and key.

    A compiled function that runs on a strategy must be traced once, and must not outlive the
    strategy. A strategy has no place for such a function, and it cannot be a weak key, since it is
    reachable from the function. Seen with TensorFlow 2.21.0.
    """
    made = vars(strategy).setdefault("_tripletmill", {})
    if key not in made:
        made[key] = make()
    return made[key]


def not_inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that stays a call in the graph of its caller.

    TensorFlow spends time on the operations of a branch of `tf.cond` that it does not execute. A
    call that is not inlined costs nothing until it is executed. Seen with TensorFlow 2.21.0.
    """
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def record_at(path: tf.Tensor, offset: tf.Tensor, buffer_size: tf.Tensor) -> tf.data.Dataset:
    """The records of a TFRecord file from a byte offset on.

    Args:
      path: scalar string.
      offset: scalar int64, where a record begins.
      buffer_size: scalar int64, bytes that are read at once.

    `tf.data.TFRecordDataset` takes no offsets. Seen with TensorFlow 2.21.0.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=buffer_size,
        byte_offsets=offset[None],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def make_sums_deterministic() -> None:
    """Makes TensorFlow compute the same bits every time; to be called before it computes anything.

    TensorFlow's own switch does not cover the sum of three or more gradients of one tensor (AddN):
    the order of that sum depends on which thread is faster. If one operation runs at a time, on all
    cores, the order is fixed. Seen with TensorFlow 2.21.0.

    Raises:
      RuntimeError: TensorFlow runs already, with more threads.
    """
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()


def has_clock() -> bool:
    """Whether TensorFlow reads the clock: it refuses to where operations are deterministic.

    Seen with TensorFlow 2.21.0.
    """
    try:
        tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return False
    return True
