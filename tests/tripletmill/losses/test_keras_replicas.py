"""The law of replicas in plain Keras: results do not depend on the number of replicas.

The last batch is smaller than the others.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures import processes, triplet_oracle
from tests.fixtures.keras_replicas import BATCH, data, fit
from tests.fixtures.replicas import MARGIN, make_model

ORACLES = {"hard": triplet_oracle.hard, "semihard": triplet_oracle.semihard}


@functools.cache
def on_one(loss: str, rows: int) -> dict[str, np.ndarray]:
    return fit(tf.distribute.get_strategy(), loss, rows)


def true_loss(loss: str, outputs: np.ndarray) -> float:
    """The mean over the batches, weighted by their numbers of rows as Keras does."""
    labels = data(len(outputs))[1]
    starts = range(0, len(outputs), BATCH)
    batches = [slice(start, start + BATCH) for start in starts]
    values = [
        ORACLES[loss](labels[batch], outputs[batch], margin=MARGIN, metric="L2")
        for batch in batches
    ]
    return np.average(values, weights=[len(labels[batch]) for batch in batches])


# With 37 rows, the replicas have unequal parts of the last batch. With 33, one has no part.
@pytest.mark.parametrize(
    ("replicas", "losses"),
    [
        pytest.param(2, ["semihard-37", "hard-33"], marks=pytest.mark.slow),
        (4, ["semihard-37"]),
    ],
)
def test_fit_does_not_depend_on_the_replicas(replicas, losses):
    results = processes.results("tests.fixtures.keras_replicas", replicas, *losses)
    for name in losses:
        loss, rows = name.split("-")
        one = on_one(loss, int(rows))
        before = make_model("float32")(data(int(rows))[0]).numpy()
        several = {key: results[f"{name}/{key}"] for key in one}
        for run in (one, several):
            np.testing.assert_allclose(run["frozen"], [true_loss(loss, before)], rtol=1e-5)
            np.testing.assert_allclose(run["evaluated"], true_loss(loss, run["outputs"]), rtol=1e-5)
        for key in one:
            np.testing.assert_allclose(several[key], one[key], rtol=0, atol=1e-5, err_msg=key)
        assert np.ptp(one["history"]) > 0.001  # the training changed the loss
