"""Losses and gradients on some replicas, in a process of its own: see test_global_batch.py.

A process of its own, because TensorFlow's collectives do not take two strategies of different
size in one.
"""

import dataclasses
import sys

import numpy as np
import tensorflow as tf

from trainer import global_batch, losses

LABELS = {
    "across": [0, 1, 0, 1, 2, 2, 0, 3],  # classes across replicas, one image alone
    "uneven": [0, 0, 0, 0, 1, 2, 3, 4],  # all positives on the first replicas
    "paired": [0, 0, 1, 1, 2, 2, 3, 3],
}
LOSSES = {
    "hard": losses.hard_triplets,
    "semihard": losses.semihard_triplets,
    "local": lambda *args, **kw: losses.semihard_triplets(*args, **kw, across_replicas=False),
}
EMBEDDINGS = np.random.default_rng(1).normal(size=(8, 5))
WEIGHTS = np.eye(5)[:, :3] + 0.1
MARGIN = 0.5


def stop_gathered(labels, own, **kwargs):
    batch = gather(labels, own, **kwargs)
    rest = tf.stop_gradient(batch.embeddings)
    embeddings = tf.tensor_scatter_nd_update(rest, batch.rows[:, None], own)
    return dataclasses.replace(batch, embeddings=embeddings)


def count_locally(x, **_):
    return x


def all_on_every_replica(*args, **kwargs):
    batch = gather(*args, **kwargs)
    return dataclasses.replace(batch, rows=tf.range(tf.shape(batch.labels)[0]))


def pair_with_itself(*args, **kwargs):
    batch = gather(*args, **kwargs)
    return dataclasses.replace(batch, rows=tf.range(tf.shape(batch.rows)[0]))


gather = global_batch.gather
MUTANTS = {
    "none": {},
    "stop_gathered": {"gather": stop_gathered},
    "count_locally": {"global_sum": count_locally},
    # The full B x B on every replica, and nothing divided by their number.
    "all_on_every_replica": {"gather": all_on_every_replica, "global_sum": count_locally},
    "pair_with_itself": {"gather": pair_with_itself},
}


def loss_and_gradient(loss, labels, strategy):
    """Summed over replicas: the loss, and its gradient with respect to a linear model's weights."""
    rows = len(labels) // strategy.num_replicas_in_sync
    with strategy.scope():
        weights = tf.Variable(WEIGHTS)

    def replica_step():
        context = tf.distribute.get_replica_context()
        here = context.replica_id_in_sync_group * rows + tf.range(rows)
        with tf.GradientTape() as tape:
            outputs = tf.gather(tf.constant(EMBEDDINGS), here) @ weights
            value = loss(tf.gather(tf.constant(labels), here), outputs, margin=MARGIN).loss
        gradient = tape.gradient(value, weights)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, [value, gradient])

    value, gradient = tf.function(lambda: strategy.run(replica_step))()
    local = strategy.experimental_local_results
    return np.append(local(gradient)[0].numpy().ravel(), local(value)[0].numpy())


def main(replicas: int, mutant: str, out: str) -> None:
    for name, replacement in MUTANTS[mutant].items():
        setattr(global_batch, name, replacement)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    results = {
        f"{loss}-{labels}": loss_and_gradient(LOSSES[loss], LABELS[labels], strategy)
        for loss in LOSSES
        for labels in LABELS
    }
    np.savez(out, **results)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
