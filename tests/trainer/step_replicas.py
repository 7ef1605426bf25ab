"""Runs five whole training steps on several replicas, for test_steps.py.

python -m tests.trainer.step_replicas OUT REPLICAS CASE ...

CASE has the fields of a Case, separated by dashes. REPLICAS is "workers" in a process of a cluster.
"""

import dataclasses
import functools
import sys
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.trainer.replicas import mirrored
from trainer.gradients import make_gradients
from trainer.loop import make_loop
from trainer.losses import batch_triplets
from trainer.updates import Updates

STEPS, ROWS = 5, 16
CLIP_NORM, DECAY = 0.1, 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """How a step is computed, and what is broken in it."""

    dtype: str = "float64"
    microbatches: int = 1
    options: str = "all"
    mutant: str = "none"

    def __str__(self) -> str:
        return "-".join(map(str, dataclasses.astuple(self)))

    @classmethod
    def of(cls, name: str) -> "Case":
        dtype, microbatches, *rest = name.split("-")
        return cls(dtype, int(microbatches), *rest)


def make_model(dtype: str, *, batch_norm: bool) -> keras.Model:
    """Makes a backbone and a head, with the same weights every time."""
    inputs = keras.Input((5,), dtype=dtype)
    features = keras.layers.Dense(6, "tanh", dtype=dtype, name="features")(inputs)
    if batch_norm:
        norm = keras.layers.BatchNormalization(synchronized=True, momentum=0.5, dtype=dtype)
        features = norm(features)
    model = keras.Model(inputs, keras.layers.Dense(4, dtype=dtype, name="head")(features))
    rng = np.random.default_rng(2)
    model.set_weights([rng.uniform(0.2, 1.2, size=w.shape) for w in model.get_weights()])
    return model


def batches(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [STEPS, ROWS, 5] and labels [STEPS, ROWS]."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(STEPS, ROWS, 5)).astype(dtype)
    return inputs, np.stack([rng.permutation(np.arange(ROWS) // 4) for _ in range(STEPS)])


def clip_before_the_sum(self, gradients):
    return apply(self, tf.clip_by_global_norm(list(gradients), CLIP_NORM)[0])


apply = Updates.apply
MUTANTS = {
    "none": apply,
    "clip_before_the_sum": clip_before_the_sum,
}


def run(strategy: tf.distribute.Strategy, case: Case) -> dict[str, np.ndarray]:
    """The statistics of each step, the weights at the end, and the weights' averages."""
    with strategy.scope():
        model = make_model(case.dtype, batch_norm=case.options == "norm")
        everything = case.options == "all"
        updates = Updates(
            model,
            lambda: keras.optimizers.SGD(0.05, momentum=0.9),
            (lambda: keras.optimizers.SGD(0.2)) if everything else None,
            clip_norm=CLIP_NORM if everything else None,
            average_decay=DECAY if everything else None,
        )
    triplets = functools.partial(
        batch_triplets,
        margin=0.5,
        jit_compile=False,
        across_replicas=case.options != "apart",
    )
    replicas = strategy.num_replicas_in_sync
    here = ROWS // replicas
    run_steps = make_loop(
        strategy,
        make_gradients(
            model,
            triplets,
            microbatches=case.microbatches,
            jit_compile=case.options == "xla",
        ),
        updates,
        batch_size=here,
        embedding_dim=4,
    )
    inputs, labels = batches(case.dtype)

    def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        hosts = context.num_input_pipelines
        host = context.input_pipeline_id
        parts = [
            x.reshape(STEPS, hosts, replicas // hosts, here, *x.shape[2:])[:, host].reshape(
                -1, here, *x.shape[2:]
            )
            for x in (inputs, labels)
        ]
        spares = np.zeros(parts[1].shape, np.int32)
        return tf.data.Dataset.from_tensor_slices((*parts, spares))

    with mock.patch.object(Updates, "apply", MUTANTS[case.mutant]):
        iterator = iter(strategy.distribute_datasets_from_function(of_host))
        loops = [run_steps(iterator, 1) for _ in range(STEPS - 2)]
        loops.append(run_steps(iterator, 2))
    names = [*loops[0].statistics]
    with strategy.scope():
        averages = [np.ravel(average.numpy()) for average in updates.averages]
    return {
        "statistics": np.array([[loop.statistics[name] for name in names] for loop in loops]),
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]),
        "averages": np.concatenate(averages) if averages else np.zeros(1),
        "embeddings": loops[-1].last.embeddings,
        "positive": loops[-1].last.positive,
        "negative": loops[-1].last.negative,
        "term": loops[-1].last.term,
    }


def main(out: str, replicas: str, *names: str) -> None:
    if replicas == "workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = mirrored(int(replicas))
    found = {name: run(strategy, Case.of(name)) for name in names}
    np.savez(out, **{f"{name}/{key}": x for name in found for key, x in found[name].items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
