"""Gathers the embeddings of all replicas, so that each replica sees the global batch.

The anchors of a replica are its own rows. Its candidates are the rows of all replicas, gathered
with gradient. Each replica computes its share of the global loss, so losses and gradients must be
summed over the replicas.
"""

import dataclasses

import tensorflow as tf

from tripletmill.errors import UsageError


@dataclasses.dataclass(frozen=True)
class GlobalBatch:
    """The rows of all replicas, as one replica sees them.

    Attributes:
      embeddings: [B, D] of all replicas. The gradient of a row reaches the replica that brought it.
      labels: [B] of all replicas.
      rows: [b] int32, the rows of embeddings and labels that this replica brought.
      row_offset: scalar int32, to be added to a row of this batch to get a row of the global batch.
        It is 0, except if the replicas mine apart. Then it is computed as if all replicas brought
        equally many rows.
    """

    embeddings: tf.Tensor
    labels: tf.Tensor
    rows: tf.Tensor
    row_offset: tf.Tensor | int = 0


def replica_context() -> "tf.distribute.ReplicaContext | None":
    """The replica context if there are several replicas, else None."""
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def gather(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    across_replicas: bool = True,
    transport: str | None = None,
) -> GlobalBatch:
    """Gathers the global batch. Replicas may bring different numbers of rows, except on TPUs.

    Args:
      labels: [b] int32 or int64, the labels of this replica.
      embeddings: [b, D] floats, the embeddings of this replica.
      across_replicas: if False, the batch consists of this replica's rows alone.
      transport: how embeddings travel between replicas, "all_gather" or "all_reduce" (see
        docs/architecture.md). None chooses by the strategy's devices.

    Raises:
      UsageError: on TPUs, the size of the batch is not known when the step is compiled.
    """
    context = replica_context()
    num_rows = tf.shape(labels)[0]
    if context is None:
        return GlobalBatch(embeddings, labels, tf.range(num_rows))
    replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
    if not across_replicas:
        return GlobalBatch(embeddings, labels, tf.range(num_rows), row_offset=replica * num_rows)
    if _runs_on("TPU", context) and embeddings.shape[0] is None:
        raise UsageError(
            "the batch has no fixed size, which TPUs need: batch with drop_remainder=True"
        )
    # Labels travel as int32, because TPUs have no fast path for int64: an int64 label is two
    # columns. The last column is the number of the replica that brought the row.
    columns = tf.bitcast(labels, tf.int32)
    columns = columns if columns.shape.rank == 2 else columns[:, None]
    owner = tf.fill(tf.shape(columns[:, :1]), replica)
    columns = context.all_gather(tf.concat([columns, owner], 1), axis=0)
    first_row = tf.reduce_sum(tf.cast(columns[:, -1] < replica, tf.int32))
    label_bits = columns[:, :-1] if labels.dtype.size == 8 else columns[:, 0]
    transport = transport or ("all_reduce" if _runs_on("GPU", context) else "all_gather")
    if transport == "all_reduce":
        gathered = _gather_by_all_reduce(context, embeddings, first_row, tf.shape(columns)[0])
    else:
        # all_gather refuses the bare arguments of the replica function; an identity is none.
        gathered = context.all_gather(tf.identity(embeddings), axis=0)
    return GlobalBatch(
        embeddings=gathered,
        labels=tf.bitcast(label_bits, labels.dtype),
        rows=first_row + tf.range(num_rows),
    )


def _runs_on(kind: str, context: tf.distribute.ReplicaContext) -> bool:
    devices = context.strategy.extended.worker_devices
    return any(f":{kind}:" in device.upper() for device in devices)


def _gather_by_all_reduce(
    context: tf.distribute.ReplicaContext, x: tf.Tensor, first_row: tf.Tensor, total_rows: tf.Tensor
) -> tf.Tensor:
    """Gathers x [b, D] of all replicas into [B, D].

    Each replica places its rows in a tensor of zeros, from first_row on. These tensors are summed.
    """
    num_rows = tf.shape(x)[0]

    @tf.custom_gradient
    def place_and_sum(x: tf.Tensor):
        placed = tf.pad(x, [[first_row, total_rows - first_row - num_rows], [0, 0]])

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            summed = context.all_reduce(tf.distribute.ReduceOp.SUM, upstream)
            return summed[first_row : first_row + num_rows]

        return context.all_reduce(tf.distribute.ReduceOp.SUM, placed), backward

    return place_and_sum(x)


def global_sum(x: tf.Tensor, *, across_replicas: bool = True) -> tf.Tensor:
    """Sums numbers over the replicas. No gradient passes.

    With across_replicas=False, it returns this replica's numbers times the number of replicas. If
    each replica divides its loss by that, the shares add up to the mean of the replicas' losses.
    """
    context = replica_context()
    x = tf.stop_gradient(x)
    if context is None:
        return x
    if not across_replicas:
        return x * tf.cast(context.num_replicas_in_sync, x.dtype)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
