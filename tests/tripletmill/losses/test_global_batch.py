"""The law of replicas: loss, gradients and weights do not depend on the number of replicas.

For each number of replicas, tests/fixtures/replicas.py runs in a process of its own. One replica
runs in this process.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures import processes, triplet_oracle
from tests.fixtures.replicas import CLASSES, MARGIN, MUTANTS, Case, batches, make_model, run

SCRIPT = "tests.fixtures.replicas"
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
QUANTITIES = ("losses", "gradients", "weights")
SOME = [
    Case("hard", "float32", "int64", "all_reduce"),
    Case("semihard", "float64", "int64", "all_gather"),
    Case("nonzero", "float64", "int32", "all_reduce"),
]
CASES = {
    2: [
        *SOME,
        Case("hard", "float64"),
        Case("semihard", "float32"),
        Case("semihard", "float64", "int32", "all_reduce"),
        Case("soft", "float32", "int32", "all_reduce"),
        Case("band", "float64"),
        Case("triplet_hard_loss", "float64"),
        Case("triplet_semihard_loss", "float32", "int64", "all_reduce"),
    ],
    4: [*SOME, Case("soft", "float64")],
    8: SOME[:2],
}


@functools.cache
def on_one(loss: str, dtype: str) -> dict[str, np.ndarray]:
    return run(tf.distribute.get_strategy(), Case(loss, dtype))


def errors(results: dict[str, np.ndarray], case: Case) -> dict[str, float]:
    """The largest difference to one replica, divided by the largest number."""
    one = on_one(case.loss, case.dtype)
    return {
        key: np.abs(results[f"{case}/{key}"] - one[key]).max() / np.abs(one[key]).max()
        for key in QUANTITIES
    }


def check_law(results: dict[str, np.ndarray], cases: list[Case]) -> None:
    errors_of_cases = {str(case): errors(results, case) for case in cases}
    assert all((on_one(case.loss, case.dtype)["losses"] > 0.01).all() for case in cases)
    broken = {
        name: value
        for case, (name, value) in zip(cases, errors_of_cases.items(), strict=True)
        if not max(value.values()) <= TOLERANCE[case.dtype]
    }
    assert not broken


@pytest.mark.parametrize("replicas", [8, 4, 2])
def test_losses_gradients_and_weights_are_those_of_one_replica(replicas):
    check_law(processes.results(SCRIPT, replicas, *CASES[replicas]), CASES[replicas])


def test_on_two_worker_processes():
    cases = [
        Case("hard", "float32", "int64", "all_reduce"),
        Case("semihard", "float64", "int64", "all_gather"),
        Case("triplet_semihard_loss", "float32"),
    ]
    labels, inputs, _, _ = next(batches("int32", "float64", 1))
    twice = triplet_oracle.hard(
        np.tile(labels, 2), np.tile(inputs, (2, 1)), margin=MARGIN, metric="L2"
    )
    for results in processes.workers(2, SCRIPT, "workers", *cases):
        check_law(results, cases)
        assert results["arguments/loss"] == pytest.approx(twice, rel=1e-10)


def test_the_law_notices():
    cases = [Case("semihard", mutant=mutant) for mutant in MUTANTS if mutant != "none"]
    cases += [Case("hard", mutant="stop_gathered")]
    results = processes.results(SCRIPT, 2, *cases)
    for case in cases:
        wrong = errors(results, case)
        assert all(error > 0.01 for error in wrong.values()), (case, wrong)
    # The first loss of this mutant is right, so a comparison of losses alone would not notice it.
    one = on_one("semihard", "float64")["losses"][0]
    several = results[f"{Case('semihard', mutant='stop_gathered')}/losses"][0]
    assert several == pytest.approx(one, rel=1e-10)


def test_within_replicas_it_is_the_mean_of_their_losses():
    """Checks the first step. In later ones, a replica may have no row, and then a loss of 0."""
    case = Case("local")
    _, inputs, first, last = next(batches("int32", "float64", 2))
    outputs = make_model("float64")(inputs).numpy()
    halves = [
        triplet_oracle.semihard(CLASSES[0][here], outputs[here], margin=MARGIN, metric="L2")
        for here in map(slice, first, last)
    ]
    results = processes.results(SCRIPT, 2, case)
    np.testing.assert_allclose(results[f"{case}/losses"][0], np.mean(halves), rtol=1e-10)
    assert np.isfinite(results[f"{case}/gradients"]).all()
