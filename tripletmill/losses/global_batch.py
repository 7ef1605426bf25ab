"""The seam between replicas and losses: every replica sees the embeddings of all.

Each replica's anchors are its own rows, its candidates the rows of all replicas, gathered with
gradient. What it returns is its share of the global loss, so that losses and gradients are summed
over replicas.
"""

import dataclasses

import tensorflow as tf

from tripletmill.errors import UsageError


@dataclasses.dataclass(frozen=True)
class GlobalBatch:
    """The rows of all replicas, as one of them sees them.

    Attributes:
      embeddings: [B, D] of all replicas; the gradient reaches the replica that each row is from.
      labels: [B] of all replicas.
      rows: [b] int32, which of them are this replica's.
      before: scalar int32, rows of the global batch that come before these: 0, but for a replica
        that keeps to its own, where it is counted as if all brought as many.
    """

    embeddings: tf.Tensor
    labels: tf.Tensor
    rows: tf.Tensor
    before: tf.Tensor | int = 0


def _replicas() -> "tf.distribute.ReplicaContext | None":
    """The replica context where there are several replicas, else None."""
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def gather(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    across_replicas: bool = True,
    transport: str | None = None,
) -> GlobalBatch:
    """Gathers the global batch; replicas may bring different numbers of rows, except on TPUs.

    Args:
      labels: [b] int32 or int64 of this replica.
      embeddings: [b, D] of this replica.
      across_replicas: False keeps to this replica's rows.
      transport: how embeddings travel, "all_gather" or "all_reduce" (see docs/architecture.md);
        None chooses by the strategy's devices.

    Raises:
      UsageError: on TPUs, a batch whose size is not known when the step is compiled.
    """
    context = _replicas()
    here = tf.shape(labels)[0]
    if context is None:
        return GlobalBatch(embeddings, labels, tf.range(here))
    replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
    if not across_replicas:
        return GlobalBatch(embeddings, labels, tf.range(here), before=replica * here)
    if _on("TPU", context) and embeddings.shape[0] is None:
        raise UsageError(
            "the batch has no fixed size, which TPUs need: batch with drop_remainder=True"
        )
    # The owner travels with the label, as int32: TPUs have no fast path for int64.
    pieces = tf.bitcast(labels, tf.int32)
    pieces = pieces if pieces.shape.rank == 2 else pieces[:, None]
    owner = tf.fill(tf.shape(pieces[:, :1]), replica)
    pieces = context.all_gather(tf.concat([pieces, owner], 1), axis=0)
    first = tf.reduce_sum(tf.cast(pieces[:, -1] < replica, tf.int32))
    bits = pieces[:, :-1] if labels.dtype.size == 8 else pieces[:, 0]
    transport = transport or ("all_reduce" if _on("GPU", context) else "all_gather")
    if transport == "all_reduce":
        gathered = _scatter_and_add(context, embeddings, first, tf.shape(pieces)[0])
    else:
        # all_gather refuses bare function arguments, which an identity is not.
        gathered = context.all_gather(tf.identity(embeddings), axis=0)
    return GlobalBatch(
        embeddings=gathered,
        labels=tf.bitcast(bits, labels.dtype),
        rows=first + tf.range(here),
    )


def _on(kind: str, context: tf.distribute.ReplicaContext) -> bool:
    devices = context.strategy.extended.worker_devices
    return any(f":{kind}:" in device.upper() for device in devices)


def _scatter_and_add(
    context: tf.distribute.ReplicaContext, x: tf.Tensor, first: tf.Tensor, total: tf.Tensor
) -> tf.Tensor:
    """Rows of all replicas: each adds its own to zeros, at its place."""
    here = tf.shape(x)[0]

    @tf.custom_gradient
    def spread(x: tf.Tensor):
        placed = tf.pad(x, [[first, total - first - here], [0, 0]])

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            summed = context.all_reduce(tf.distribute.ReduceOp.SUM, upstream)
            return summed[first : first + here]

        return context.all_reduce(tf.distribute.ReduceOp.SUM, placed), backward

    return spread(x)


def global_sum(x: tf.Tensor, *, across_replicas: bool = True) -> tf.Tensor:
    """Sums numbers over the replicas; no gradient passes.

    With across_replicas=False, this replica's alone times the number of replicas: what to divide
    by for shares that add up to the mean of the replicas' losses.
    """
    context = _replicas()
    x = tf.stop_gradient(x)
    if context is None:
        return x
    if not across_replicas:
        return x * tf.cast(context.num_replicas_in_sync, x.dtype)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
