"""Several processes that train together: who writes, what all agree on, and who is missing."""

import hashlib
import json
from typing import Any

import numpy as np
import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetInfo

# ---- What TF_CONFIG says.


# ---- What all agree on.


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes."""
    return _count(strategy) == 1 or strategy.cluster_resolver.task_id == 0


def all_gather_int(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """A number of each process, from those that train together; every one has to ask."""
    workers = _count(strategy)
    if workers == 1:
        return [value]
    own = np.zeros([workers], np.int64)
    own[strategy.cluster_resolver.task_id] = value
    return [int(each) for each in all_reduce_sum(strategy, own)]


def worker_index_and_count(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Which of the processes that train together this one is, and how many there are."""
    count = _count(strategy)
    return (0 if count == 1 else int(strategy.cluster_resolver.task_id)), count


def all_reduce_sum(strategy: tf.distribute.Strategy, own: np.ndarray) -> np.ndarray:
    """The sum of the processes' arrays, of one shape and type; every one has to ask."""
    # GPUs sum no int32.
    wide = own.astype(np.int64) if np.issubdtype(own.dtype, np.integer) else own
    return _sum(strategy)(tf.constant(wide)).numpy().astype(own.dtype)


def broadcast_from_chief(strategy: tf.distribute.Strategy, own: np.ndarray) -> np.ndarray:
    """The chief's array in every process, where last bits may differ; every one has to ask."""
    if _count(strategy) == 1:
        return own
    return all_reduce_sum(strategy, own if is_chief(strategy) else np.zeros_like(own))


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether any process has raised its flag; every one has to ask, and hears the same."""
    return any(all_gather_int(strategy, int(flag)))


def require_same(strategy: tf.distribute.Strategy, value: int, what: str) -> None:
    """Raises UsageError in every process unless the number is the same in all."""
    values = all_gather_int(strategy, value)
    if len({*values}) > 1:
        shown = ", ".join(f"{value:,}" for value in values)
        raise UsageError(f"{what} is not the same for all workers: {shown}")


def require_agreement(
    strategy: tf.distribute.Strategy, configuration: str, info: DatasetInfo
) -> None:
    """Raises UsageError in every process unless all have the same configuration and data set.

    Args:
      strategy: of all of them.
      configuration: what they must have in common, as text.
      info: of the data set.
    """
    data = [info.input_fingerprint, dict(info.settings), dict(info.num_images)]
    _require_same_text(
        strategy,
        configuration,
        "the workers differ in their configuration: that of {} is not that of worker 0; start all"
        " with the same --mode, --gin_file and --gin_param",
    )
    _require_same_text(
        strategy,
        json.dumps(data, sort_keys=True),
        "the workers differ in their data set: that of {} is not that of worker 0"
        "; give all the same --data_dir, or copies of it",
    )


def _require_same_text(strategy: tf.distribute.Strategy, text: str, message: str) -> None:
    # So many bits that they can be summed over the replicas of a worker.
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    digests = all_gather_int(strategy, digest)
    others = [f"worker {i}" for i, other in enumerate(digests) if other != digests[0]]
    if others:
        raise UsageError(message.format(", ".join(others)))


def _count(strategy: tf.distribute.Strategy) -> int:
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return len(strategy.cluster_resolver.cluster_spec().job_tasks("worker"))


def _sum(strategy: tf.distribute.Strategy) -> Any:
    """Kept with the strategy: traced once for each shape."""
    if not hasattr(strategy, "_tripletmill_sum"):
        local = strategy.num_replicas_in_sync // _count(strategy)

        def of_first(value: tf.Tensor) -> tf.Tensor:
            """The value in one replica of each process, zeros in the others."""
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(number % local == 0, value, tf.zeros_like(value))

        @tf.function(autograph=False)
        def total(value: tf.Tensor) -> tf.Tensor:
            shares = strategy.run(of_first, args=(value,))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)

        strategy._tripletmill_sum = total
    return strategy._tripletmill_sum


# ---- Who is missing.
