"""Runs five optimizer steps on several replicas, for test_global_batch.py.

python -m tests.trainer.replicas OUT REPLICAS CASE ...

CASE has the fields of a Case, separated by dashes. REPLICAS is "workers" in a process of a cluster.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from trainer import global_batch, losses

STEPS = 5
ROWS = 16
MARGIN = 0.5
# The steps use these in turn. The first has classes on several replicas and an image without a
# second one of its class; the second has all positives on the first replicas.
CLASSES = [
    [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 5, 1, 0, 6, 4, 2],
    [0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9],
]
# The steps use these numbers of rows of each replica in turn.
SIZES = {
    1: [[16]],
    2: [[8, 8], [5, 11], [0, 16]],
    4: [[4, 4, 4, 4], [1, 9, 0, 6]],
    8: [[2, 2, 2, 2, 2, 2, 2, 2], [5, 0, 1, 0, 2, 3, 1, 4]],
}
LABELS = {
    "int32": lambda classes: np.asarray(classes, np.int32),
    # As float32, labels 0 and 1 would be one class; as int32, labels 0 and 2 would.
    "int64": lambda classes: (
        2**41 + np.asarray(classes, np.int64) // 2 * 2**33 + np.asarray(classes, np.int64) % 2
    ),
}


def _shares(positive: str, negative: str, **options) -> Callable:
    # XLA is off: it compiles once for each device, which would take most of the time.
    options = {"positive": positive, "negative": negative, "jit_compile": False, **options}
    return lambda *args, **kw: losses.batch_triplets(*args, **kw, **options).loss


LOSSES = {
    "triplet_hard_loss": losses.triplet_hard_loss,
    "triplet_semihard_loss": losses.triplet_semihard_loss,
    "hard": _shares("hard", "hard"),
    "soft": _shares("hard", "hard", soft=True),
    "semihard": _shares("all", "semihard"),
    "nonzero": _shares("all", "all", nonzero_mean=True),
    "band": _shares("easy", "band"),
    "local": _shares("all", "semihard", across_replicas=False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, how its rows travel between replicas, and what is broken in global_batch."""

    loss: str
    dtype: str = "float64"
    labels: str = "int32"
    transport: str = "all_gather"
    mutant: str = "none"

    def __str__(self) -> str:
        return "-".join(dataclasses.astuple(self))


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
    # This computes the full B x B on every replica and does not divide by their number.
    "all_on_every_replica": {"gather": all_on_every_replica, "global_sum": count_locally},
    "pair_with_itself": {"gather": pair_with_itself},
}


def batches(labels: str, dtype: str, replicas: int):
    """For each step: labels, inputs, first row of each replica and the row after its last."""
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        last = np.cumsum(SIZES[replicas][step % len(SIZES[replicas])])
        yield (
            LABELS[labels](CLASSES[step % len(CLASSES)]),
            rng.normal(size=(ROWS, 5)).astype(dtype),
            np.append(0, last[:-1]),
            last,
        )


def make_model(dtype: str) -> keras.Model:
    """Makes a model of two layers, with the same weights every time."""
    model = keras.Sequential(
        [keras.layers.Dense(6, "tanh", dtype=dtype), keras.layers.Dense(4, dtype=dtype)]
    )
    model.build((None, 5))
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def run(strategy: tf.distribute.Strategy, case: Case) -> dict[str, np.ndarray]:
    """Summed over replicas: losses and gradients [STEPS, ...]; and the weights at the end."""
    with strategy.scope():
        model = make_model(case.dtype)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        optimizer.build(model.trainable_variables)

    def replica_step(labels, inputs, first, last):
        context = tf.distribute.get_replica_context()
        here = slice(*(x[context.replica_id_in_sync_group] for x in (first, last)))
        with tf.GradientTape() as tape:
            loss = LOSSES[case.loss](labels[here], model(inputs[here]), margin=MARGIN)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        flat = tf.concat([loss[None], *(tf.reshape(g, [-1]) for g in gradients)], 0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, flat)

    step = tf.function(lambda *batch: strategy.run(replica_step, args=batch), autograph=False)
    transport = functools.partial(gather, transport=case.transport)
    broken = {"gather": transport, **MUTANTS[case.mutant]}
    steps = batches(case.labels, case.dtype, strategy.num_replicas_in_sync)
    with mock.patch.multiple(global_batch, **broken):
        sums = np.stack(
            [
                strategy.experimental_local_results(step(*map(tf.constant, batch)))[0].numpy()
                for batch in steps
            ]
        )
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    return {"losses": sums[:, 0], "gradients": sums[:, 1:], "weights": weights}


def of_arguments(strategy: tf.distribute.Strategy) -> dict[str, np.ndarray]:
    """The loss of the replica function's own arguments; every replica gets the same rows.

    TensorFlow's all_gather refuses such arguments where a worker has only one replica.
    """

    def replica_loss(labels, embeddings):
        loss = losses.triplet_hard_loss(labels, embeddings, margin=MARGIN)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, loss)

    function = tf.function(lambda *args: strategy.run(replica_loss, args=args), autograph=False)
    labels, inputs, _, _ = next(batches("int32", "float64", 1))
    found = function(tf.constant(labels), tf.constant(inputs))
    return {"loss": strategy.experimental_local_results(found)[0].numpy()}


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """Makes this many logical CPU devices; works once in a process."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def main(out: str, replicas: str, *names: str) -> None:
    if replicas == "workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = mirrored(int(replicas))
    found = {name: run(strategy, Case(*name.split("-"))) for name in names}
    if replicas == "workers":
        found["arguments"] = of_arguments(strategy)
    np.savez(out, **{f"{name}/{key}": x for name in found for key, x in found[name].items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
