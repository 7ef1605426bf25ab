"""The law of replicas: loss and gradients do not depend on their number.

Each number of replicas runs in a process of its own: replicas.py.
"""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.trainer import replicas as cases
from tests.trainer import triplet_oracle

ROOT = Path(__file__).parents[2]


@functools.cache
def results(replicas: int, mutant: str = "none") -> dict[str, np.ndarray]:
    """Gradient, then loss, of every case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        command = [sys.executable, "-m", "tests.trainer.replicas", str(replicas), mutant, str(out)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return dict(np.load(out))


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_loss_and_gradients_are_those_of_one_replica(replicas):
    one, several = results(1), results(replicas)
    for loss in ("hard", "semihard"):
        for labels in cases.LABELS:
            expected = one[f"{loss}-{labels}"]
            assert expected[-1] > 0
            np.testing.assert_allclose(
                several[f"{loss}-{labels}"], expected, rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize("mutant", sorted(cases.MUTANTS.keys() - {"none"}))
def test_the_law_notices(mutant):
    difference = results(2, mutant)["semihard-across"] - results(1)["semihard-across"]
    assert np.abs(difference).max() > 1e-3


def test_within_replicas_it_is_the_mean_of_their_losses():
    outputs = cases.EMBEDDINGS @ cases.WEIGHTS
    halves = [
        triplet_oracle.semihard(
            cases.LABELS["paired"][half], outputs[half], margin=cases.MARGIN, metric="L2"
        )
        for half in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(results(2)["local-paired"][-1], np.mean(halves), rtol=1e-10)
