"""The seam between replicas and losses: every replica sees the embeddings of all.

Each replica's anchors are its own rows, its candidates the rows of all replicas, gathered with
gradient. What it returns is its share of the global loss, so that losses and gradients are summed
over replicas.
"""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class GlobalBatch:
    """The rows of all replicas, as one of them sees them.

    Attributes:
      embeddings: [B, D] of all replicas; the gradient reaches the replica that each row is from.
      labels: [B] of all replicas.
      first_row: scalar int32, where this replica's rows begin.
    """

    embeddings: tf.Tensor
    labels: tf.Tensor
    first_row: tf.Tensor


def _replicas() -> "tf.distribute.ReplicaContext | None":
    """The replica context where there are several replicas, else None."""
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def gather(labels: tf.Tensor, embeddings: tf.Tensor, *, across_replicas: bool) -> GlobalBatch:
    """Gathers the global batch.

    Args:
      labels: [b] int32 of this replica.
      embeddings: [b, D] of this replica.
      across_replicas: False keeps to this replica's rows.
    """
    context = _replicas() if across_replicas else None
    if context is None:
        return GlobalBatch(embeddings, labels, tf.constant(0, tf.int32))
    # all_gather refuses bare function arguments, which an identity is not.
    return GlobalBatch(
        embeddings=context.all_gather(tf.identity(embeddings), axis=0),
        labels=context.all_gather(tf.identity(labels), axis=0),
        first_row=context.replica_id_in_sync_group * tf.shape(labels)[0],
    )


def global_count(count: tf.Tensor, *, across_replicas: bool) -> tf.Tensor:
    """Sums a number over the replicas; no gradient passes."""
    context = _replicas()
    count = tf.stop_gradient(count)
    if context is None:
        return count
    if not across_replicas:
        return count * tf.cast(context.num_replicas_in_sync, count.dtype)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, count)


@tf.custom_gradient
def take_rows(x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Rows [N] of x [B, D] -> [N, D], with a dense gradient.

    tf.gather's is sparse, and all_gather's gradient does not take that.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.math.unsorted_segment_sum(upstream, rows, tf.shape(x)[0]), None

    return tf.gather(x, rows), gradient
