"""Spread and effective rank by their definitions, and when a warning comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.health import LOOPS, ROWS, STEPS, STUCK_STEPS, Health, effective_rank, spread

HEALTHY = {"spread": 0.9, "effective_rank": 30.0, "active": 0.3, "input_share": 0.01}


def both_ways(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors and their opposites, whose mean is zero."""
    return np.concatenate([vectors, -vectors])


def drawn(seed: int, b: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[b, dim]).astype(np.float32)


def by_definition(embeddings: np.ndarray) -> tuple[float, float]:
    """Computes the spread from all pairs, and the effective rank from all singular values."""
    rows = embeddings.astype(np.float64)
    pairs = rows[:, None] - rows[None]
    square = np.mean(np.sum(pairs**2, axis=2)) / 2
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    shares = [value / values.sum() for value in values if value > 1e-9 * values[0]]
    entropy = -sum(share * np.log(share) for share in shares)
    return np.sqrt(square / np.mean(np.sum(rows**2, axis=1))), np.exp(entropy)


shapes = {
    "seed": st.integers(0, 2**32 - 1),
    "b": st.integers(3, 20),
    "dim": st.integers(2, 20),
}


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_equal_orthogonal_directions_are_counted(k):
    embeddings = both_ways(np.eye(8, dtype=np.float32)[:k])
    assert effective_rank(embeddings) == pytest.approx(k, rel=1e-12)
    assert spread(embeddings) == 1


def test_worked_by_hand():
    # Singular values 3 : 1, shares 3/4 and 1/4: exp(3/4 log 4/3 + 1/4 log 4) = 4 / 3^(3/4).
    assert effective_rank(both_ways(np.diag([3.0, 1.0]))) == pytest.approx(4 / 3**0.75)
    # The k corners of a simplex lie in k - 1 equal directions. With two corners, the mean lies
    # halfway between them.
    assert effective_rank(np.eye(5)) == pytest.approx(4)
    assert spread(np.eye(2)) == pytest.approx(0.5**0.5)


@given(**shapes)
def test_by_definition(seed, b, dim):
    embeddings = drawn(seed, b, dim) + 1
    np.testing.assert_allclose(
        (spread(embeddings), effective_rank(embeddings)), by_definition(embeddings), rtol=1e-6
    )


@given(**shapes, scale=st.floats(1e-3, 1e3))
def test_neither_direction_nor_scale_matters(seed, b, dim, scale):
    embeddings = drawn(seed, b, dim).astype(np.float64)
    turn = np.linalg.qr(drawn(seed + 1, dim, dim).astype(np.float64))[0]
    turned = scale * embeddings @ turn
    assert effective_rank(turned) == pytest.approx(effective_rank(embeddings), rel=1e-6)
    assert spread(turned) == pytest.approx(spread(embeddings), rel=1e-9)
    assert 1 <= effective_rank(turned) <= min(b - 1, dim) * (1 + 1e-9)
    assert 0 <= spread(turned) <= 1 + 1e-12


def test_equal_embeddings():
    one = drawn(0, 1, 64) / np.float32(8)
    rounded = one * (1 + 1e-7 * drawn(1, 100, 64))
    zeros = np.zeros([5, 3], np.float32)
    for embeddings in (np.repeat(one, 100, axis=0), rounded, zeros, zeros[:0], one):
        assert effective_rank(embeddings) == 1
        assert spread(embeddings) < 1e-6


def test_not_finite():
    embeddings = drawn(0, 5, 4)
    embeddings[2, 1] = np.nan
    assert np.isnan(spread(embeddings))
    assert np.isnan(effective_rank(embeddings))


def test_rows_of_the_whole_batch_are_looked_at():
    # Each block of rows has its own direction, so the first rows alone would show one of four.
    embeddings = np.repeat(both_ways(np.eye(4)), 2 * ROWS, axis=0)
    assert effective_rank(embeddings) == pytest.approx(4)
    assert spread(embeddings) == pytest.approx(1)


def told(series: list[dict[str, float]], every: int = 10) -> dict[int, list[str]]:
    """Returns the warnings by step of a run that has these numbers after every `every` steps."""
    health = Health()
    warnings = {
        every * n: health.warnings(every * n, {**HEALTHY, **numbers})
        for n, numbers in enumerate(series, start=1)
    }
    return {step: lines for step, lines in warnings.items() if lines}


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"spread": 0.0014, "effective_rank": 40.8}, "(spread 0.0014 of 1, effective rank 40.8)"),
        ({"spread": 0.9, "effective_rank": 1.04}, "(spread 0.9 of 1, effective rank 1.0)"),
        ({"active": 0.004}, "only 0.4% of the triplets are active"),
        ({"input_share": 0.63}, "63% of the time goes by waiting for images"),
    ],
)
def test_each_is_told_once_when_it_has_lasted(numbers, says):
    [(step, [line])] = told([{}] * 4 + [numbers] * 20 + [{}] + [numbers] * 20).items()
    assert step == 50 + STEPS
    assert f"step {step}: since step 50 " in line
    assert says in line


def test_what_passes_is_not_told():
    collapsed = {"spread": 0.001, "effective_rank": 9.0}
    assert not told([collapsed] * 5 + [{}] + [collapsed] * 5)
    # These are many steps, but so few calls that it may be chance.
    assert not told([collapsed] * (LOOPS - 1), every=1000)
    assert list(told([collapsed] * LOOPS, every=1000)) == [1000 * LOOPS]
    # These are many calls, but few steps.
    assert not told([collapsed] * STEPS, every=1)


def test_troubles_are_told_apart():
    slow, idle = {"input_share": 0.9}, {"active": 0.0}
    warnings = told([slow] * 3 + [slow | idle] * 20)
    assert list(warnings) == [10 + STEPS, 40 + STEPS]
    assert "waiting" in warnings[10 + STEPS][0]
    assert "active" in warnings[40 + STEPS][0]


def test_a_run_that_learns_is_left_alone():
    # The demo showed these numbers every 10 steps, when it nearly collapsed before it learned.
    spreads = [0.156, 0.374, 0.089, 0.072, 0.1, 0.358, 0.664, 0.758, 0.773, 0.839, *[0.95] * 20]
    active = [1, 1, 0.999, 1, 1, 1, 0.995, 0.944, 0.842, 0.689, *[0.2] * 20]
    ranks = [41.7, 36.9, 34.8, 33.4, 31.0, 31.5, 29.0, 28.6, 30.6, 31.6, *[33.0] * 20]
    rows = zip(spreads, active, ranks, strict=True)
    assert not told([{"spread": s, "active": a, "effective_rank": r} for s, a, r in rows])


def test_numbers_that_are_not_known():
    health = Health()
    for step in range(10, 200, 10):
        assert not health.warnings(step, {"active": 0.5})
        assert not health.warnings(step, {**HEALTHY, "spread": np.nan, "effective_rank": np.nan})


def loops(loss, positive, gap, active=1.0, **more) -> list[dict[str, float]]:
    """Returns the numbers of each call.

    `gap` is the difference of the mean distances, as a share of the distance to negatives.
    """
    negative = np.divide(positive, 1 - np.asarray(gap))
    columns = [column for column in (loss, positive, negative, active) if np.ndim(column)]
    count = len(columns[0]) if columns else 100
    columns = [np.broadcast_to(column, count) for column in (loss, positive, negative, active)]
    names = ("loss", "positive_distance", "negative_distance", "active")
    rows = [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]
    for name, values in more.items():
        rows = [{**row, name: float(value)} for row, value in zip(rows, values, strict=True)]
    return rows


def noise(share: float, count: int = 100) -> np.ndarray:
    return 1 + share * np.random.default_rng(0).normal(size=count)


@pytest.mark.parametrize("every", [10, 100])
@pytest.mark.parametrize(
    "stuck",
    [
        loops(0.199 * noise(0.002), 1.3 * noise(0.004), 0.001 * noise(1)),
        # Batch-hard mining, where negatives are nearer than positives, with the soft loss, which
        # has no margin.
        loops(1.01 * noise(0.002), 0.9 * noise(0.004), -0.01),
        loops(0.6931, 0.5 * noise(0.004), 0.0),
        # Unlike the other cases, this one has learning rates, and they fall.
        loops(0.2, 1.3 * noise(0.004), 0.0, learning_rate=np.linspace(0.1, 0.0, 100)),
    ],
)
def test_a_loss_that_is_stuck(stuck, every):
    steps = max(STUCK_STEPS, every * (LOOPS - 1))
    warnings = told([{}] * 4 + stuck, every=every)
    [(step, [line])] = warnings.items()
    assert "the loss is stuck at the margin" in line
    assert "negatives are no farther than positives" in line
    # Noise may delay the warning, but not for long.
    assert 5 * every + steps <= step <= 5 * every + 3 * steps
    if every == 10:
        assert not told(([{}] * 4 + stuck)[: 4 + STUCK_STEPS // every])


def slow(start: float, end: float, count: int = 100) -> np.ndarray:
    return np.linspace(start, end, count)


@pytest.mark.parametrize(
    "healthy",
    [
        # Semi-hard mining in a large batch: each negative lies just beyond its positive, and the
        # positives come nearer.
        loops(0.2 - 0.001 * noise(0.5), slow(1.35, 0.8) * noise(0.004), 0.001),
        # The distances fall more slowly here, but the loss falls too.
        loops(slow(0.199, 0.15), 1.3 * noise(0.004), slow(0.0, 0.019)),
        # Nothing moves yet in a long warm-up.
        loops(0.2, 1.3, 0.001, learning_rate=slow(0.0, 1e-3)),
        # Some triplets have no loss, so the mean loss does not show the margin.
        loops(0.15, 1.3, 0.01, active=0.9),
        # There is a small gap.
        loops(0.16, 1.3, 0.03),
        # In batch-hard mining the nearest negative is nearer than the farthest positive for long.
        loops(1.2, 0.8, -0.25),
    ],
)
def test_a_loss_that_is_not_stuck(healthy):
    assert not told([{}] * 4 + healthy)


def test_batch_hard_runs_pass_through_equal_distances():
    # These numbers are of the soft loss on Omniglot, every 10 steps.
    gaps = [-0.308, -0.229, -0.131, -0.087, 0.02, 0.037, 0.095, 0.041, 0.11, 0.129]
    losses = [0.801, 0.741, 0.709, 0.702, 0.692, 0.69, 0.684, 0.69, 0.682, 0.68]
    positives = [0.839, 0.484, 0.262, 0.198, 0.17, 0.176, 0.181, 0.199, 0.195, 0.191]
    assert not told(loops(losses, positives, gaps), every=100)
