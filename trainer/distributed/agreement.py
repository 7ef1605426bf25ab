"""What several processes that train together agree on.

All functions here except `worker_index_and_count` and `is_chief` are collective operations: all
processes of the strategy must call them, with values of the same shape and type.
"""

import hashlib
import json
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.workarounds import kept_with
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetInfo


def worker_index_and_count(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Index of this process among those that train together, and the number of these processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    count = len(strategy.cluster_resolver.cluster_spec().job_tasks("worker"))
    return (0 if count == 1 else int(strategy.cluster_resolver.task_id)), count


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the chief, which alone writes files."""
    return worker_index_and_count(strategy)[0] == 0


def all_gather_int(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """The integers of all processes, in the order of the workers."""
    index, count = worker_index_and_count(strategy)
    if count == 1:
        return [value]
    values = np.zeros([count], np.int64)
    values[index] = value
    return [int(each) for each in all_reduce_sum(strategy, values)]


def all_reduce_sum(strategy: tf.distribute.Strategy, array: np.ndarray) -> np.ndarray:
    """The sum of the arrays of all processes."""
    # GPUs cannot sum int32.
    wide = array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array
    return _sum_function(strategy)(tf.constant(wide)).numpy().astype(array.dtype)


def broadcast_from_chief(strategy: tf.distribute.Strategy, array: np.ndarray) -> np.ndarray:
    """The chief's array in every process.

    It makes results the same in all processes that may differ in their last bits.
    """
    index, count = worker_index_and_count(strategy)
    if count == 1:
        return array
    return all_reduce_sum(strategy, array if index == 0 else np.zeros_like(array))


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return any(all_gather_int(strategy, int(flag)))


def require_same(strategy: tf.distribute.Strategy, value: int, what: str) -> None:
    """Raises UsageError in every process unless the integer is the same in all of them.

    Args:
      strategy: the strategy of all processes.
      value: the integer of this process.
      what: what the integer is, for the message.
    """
    values = all_gather_int(strategy, value)
    if len({*values}) > 1:
        shown = ", ".join(f"{value:,}" for value in values)
        raise UsageError(f"{what} is not the same for all workers: {shown}")


def require_agreement(
    strategy: tf.distribute.Strategy, configuration: str, info: DatasetInfo
) -> None:
    """Raises UsageError in every process unless all have the same configuration and data set.

    Args:
      strategy: the strategy of all processes.
      configuration: the settings that they must have in common, as text.
      info: what the data set says about itself.
    """
    data = [info.input_fingerprint, dict(info.settings), dict(info.num_images)]
    for name, text, advice in (
        ("configuration", configuration, "start all with the same --mode, --gin_file, --gin_param"),
        ("data set", json.dumps(data, sort_keys=True), "give all copies of one data set"),
    ):
        # 48 bits: their sum over the replicas of a worker still fits into int64.
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        digests = all_gather_int(strategy, digest)
        if others := [f"worker {i}" for i, other in enumerate(digests) if other != digests[0]]:
            raise UsageError(
                f"the workers differ in their {name}: that of {', '.join(others)} is not that of"
                f" worker 0; {advice}"
            )


def _sum_function(strategy: tf.distribute.Strategy) -> Any:
    """The compiled sum over processes, made once for each strategy, so that it is traced once."""

    def make() -> Any:
        local_replicas = strategy.num_replicas_in_sync // worker_index_and_count(strategy)[1]

        def on_first_replica(value: tf.Tensor) -> tf.Tensor:
            """The value in one replica of each process, zeros in the others."""
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(number % local_replicas == 0, value, tf.zeros_like(value))

        @tf.function(autograph=False)
        def total(value: tf.Tensor) -> tf.Tensor:
            shares = strategy.run(on_first_replica, args=(value,))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)

        return total

    return kept_with(strategy, "sum over processes", make)
