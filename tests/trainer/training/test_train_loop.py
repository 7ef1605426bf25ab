"""Replicas and microbatches change nothing in whole training steps."""

import contextlib
import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures import processes
from tests.fixtures.step_replicas import CLIP_NORM, ROWS, STEPS, Case, batches, run
from trainer.training.train_loop import TrainLoop, naming_out_of_memory
from tripletmill.errors import UsageError

SCRIPT = "tests.fixtures.step_replicas"
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
WITHOUT_XLA = {"xla": "plain"}


@functools.cache
def on_one(options: str, dtype: str) -> dict[str, np.ndarray]:
    """Runs the steps on one replica with one microbatch and without XLA."""
    return run(tf.distribute.get_strategy(), Case(dtype, options=WITHOUT_XLA.get(options, options)))


def error(arrays: dict[str, np.ndarray], case: Case, key: str) -> float:
    """Returns the largest difference to one replica, as a share of the largest number."""
    one = on_one(case.options, case.dtype)[key]
    return float(np.abs(arrays[f"{case}/{key}"] - one).max() / max(np.abs(one).max(), 1e-9))


def check(arrays: dict[str, np.ndarray], cases: list[Case]) -> None:
    for case in cases:
        # The statistics that the loop reports are float32 in every case.
        for key, tolerance in (
            ("weights", TOLERANCE[case.dtype]),
            ("averages", TOLERANCE[case.dtype]),
            ("statistics", 1e-5),
        ):
            assert error(arrays, case, key) <= tolerance, (case, key)
        if len(arrays[f"{case}/term"]) == ROWS:
            for key in ("positive", "negative"):
                one = on_one(case.options, case.dtype)[key]
                np.testing.assert_array_equal(arrays[f"{case}/{key}"], one)


def test_the_case_is_worth_the_test():
    """There is a loss in every step, gradients are clipped, and averages differ from weights."""
    one = on_one("all", "float64")
    loss, *_, norm = one["statistics"].T
    assert len(loss) == STEPS - 1
    assert (loss > 0.05).all()
    assert (norm > 2 * CLIP_NORM).all()
    assert np.abs(one["weights"] - one["averages"]).max() > 1e-4
    assert np.abs(one["weights"] - on_one("plain", "float64")["weights"]).max() > 1e-2


@pytest.mark.slow
def test_a_batch_that_is_too_large_for_memory():
    with (
        pytest.raises(
            UsageError, match=r"^a step of 2,048 .*shape\[17592186044416\]\); raise train"
        ),
        naming_out_of_memory(2048),
    ):
        tf.function(lambda: tf.random.uniform([1 << 44]))()


@pytest.mark.parametrize(
    ("embeddings", "says"),
    [
        ([[1.0, 2], [np.nan, 0], [3, 4]], "1 of 3 embeddings are not finite after step 7"),
        ([[0.0, 0], [0, 0], [0, 0]], "all are zero after step 7"),
        ([[1.0, 2], [0, 0], [3, 4]], None),
    ],
)
def test_a_model_that_has_diverged_in_its_last_step(embeddings, says):
    asked = []

    def embed(forward, what, rows):
        asked.append(rows.tolist())
        return np.array(embeddings), rows

    batch = np.array([5, 2, 2, 9, 11])
    loop = SimpleNamespace(
        images=SimpleNamespace(batch_size=3, apply=embed),
        _last=(7, None, None),
        _rows=lambda steps, centres: batch,
    )
    expected = pytest.raises(UsageError, match=says) if says else contextlib.nullcontext()
    with expected:
        TrainLoop.require_finite(loop, None)
    assert asked == [[2, 5, 9]]


@pytest.mark.parametrize("microbatches", [2, 4, 8, 16])
@pytest.mark.parametrize("options", ["all", "plain", "xla"])
def test_microbatches_change_nothing(microbatches, options):
    case = Case("float64", microbatches, options)
    arrays = run(tf.distribute.get_strategy(), case)
    check({f"{case}/{key}": value for key, value in arrays.items()}, [case])
    np.testing.assert_allclose(
        arrays["embeddings"], on_one(options, "float64")["embeddings"], rtol=1e-5
    )


@pytest.mark.parametrize("replicas", [pytest.param(4, marks=pytest.mark.slow), 2])
def test_replicas_change_nothing(replicas):
    cases = [
        Case("float64"),
        Case("float64", 2),
        Case("float32", 4),
        Case("float32", 2, "xla"),
        Case("float64", 1, "norm"),
    ]
    apart = Case("float64", 1, "apart")
    broken = Case("float64", 1, "all", "clip_before_the_sum")
    arrays = processes.results(SCRIPT, replicas, *cases, apart, broken)
    check(arrays, cases)
    check_mined_apart(arrays, apart, replicas)
    assert error(arrays, broken, "weights") > 1e-3


def check_mined_apart(arrays: dict[str, np.ndarray], case: Case, replicas: int) -> None:
    """Triplets name rows of the global batch even if each replica mines only its own rows."""
    here = ROWS // replicas
    labels = batches(case.dtype)[1][-1]
    triplets = {key: arrays[f"{case}/{key}"] for key in ("positive", "negative", "term")}
    anchors = np.flatnonzero(np.isfinite(triplets["term"]))
    assert len(anchors) > here
    for anchor in anchors:
        positive, negative = triplets["positive"][anchor], triplets["negative"][anchor]
        assert anchor // here == positive // here == negative // here
        assert labels[anchor] == labels[positive] != labels[negative]


@pytest.mark.slow
def test_on_two_worker_processes():
    cases = [Case("float64"), Case("float64", 4)]
    parts = processes.workers(2, SCRIPT, "workers", *cases)
    for arrays in parts:
        check(arrays, cases)
    # Each worker has its own rows of the last batch. The first worker has the first rows.
    for case, key in itertools.product(cases, ("positive", "negative", "embeddings")):
        all_rows = np.concatenate([arrays[f"{case}/{key}"] for arrays in parts])
        np.testing.assert_allclose(all_rows, on_one(case.options, case.dtype)[key], rtol=1e-5)
