"""Metrics of a ranking with ties: their expected values over all orders of the tied rows.

McSherry, Najork: Computing Information Retrieval Performance Measures Efficiently in the Presence
of Tied Scores, ECIR 2008. A block of m tied rows, p of them matches, begins after b rows, of which
a are matches. In a random order each of its places is a match with probability p / m.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.retrieval.tied_ranks import Blocks


def expected(blocks: Blocks, num_matches: np.ndarray, cutoffs: Sequence[int]) -> np.ndarray:
    """Of each query: Recall@K for each K, MAP@R, R-precision, reciprocal rank: [q, len(K) + 3].

    Args:
      blocks: of all queries, see `Blocks`.
      num_matches: int64 [q], R; at least 1.
      cutoffs: values of K.
    """
    count, r = len(num_matches), num_matches[blocks.query]
    m = blocks.matches + blocks.others
    reached = np.clip(r - blocks.before, 0, m)  # places of the block among the R nearest
    precise = blocks.matches * reached / m
    average = _average(blocks, m, reached)
    found = np.searchsorted(blocks.query, np.arange(count))
    first = (blocks.before[found], blocks.matches[found], blocks.others[found])
    columns = [
        *(_hit(*first, cutoff) for cutoff in cutoffs),
        np.bincount(blocks.query, average, count) / num_matches,
        np.bincount(blocks.query, precise, count) / num_matches,
        _reciprocal(*first),
    ]
    return np.stack(columns, axis=1)


def _average(blocks: Blocks, m: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """The blocks' parts of R x AP@R, [B].

    Place s is a match with p / m; given that, each of the s - 1 places before it in the block is
    one with c = (p - 1) / (m - 1). So the precision there is (a + 1 + c (s - 1)) / (b + s), whose
    sum over s is c s + (a + 1 - c (b + 1)) (H(b + s) - H(b)) with the harmonic numbers H.
    """
    p, a, b = blocks.matches, blocks.matches_before, blocks.before
    c = np.where(m > 1, (p - 1) / np.maximum(m - 1, 1), 0.0)
    start = np.where(reached > 0, b, 0)  # b itself may be anything where nothing is reached
    harmonic = np.concatenate(
        [[0.0], np.cumsum(1 / np.arange(1, (start + reached).max(initial=0) + 1))]
    )
    spread = harmonic[start + reached] - harmonic[start]
    spread = np.where(reached == 1, 1 / (b + 1), spread)  # one place, no ties: without rounding
    return p / m * (c * reached + (a + 1 - c * (b + 1)) * spread)


def _hit(before: np.ndarray, matches: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """Probability [q] that a match is among the K nearest.

    None is with (others / m) ((others - 1) / (m - 1)) ..., a factor for each place of the block.
    """
    places = np.clip(k - before, 0, matches + others)
    none = np.ones(len(before))
    for i in range(int(places.max(initial=0))):
        more = places > i
        if not none[more].any():
            break
        none[more] *= np.maximum(others[more] - i, 0) / (matches + others - i)[more]
    return 1 - none


def _reciprocal(before: np.ndarray, matches: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Expected 1 / rank of the first match, [q]."""
    value = 1 / (before + 1)
    tied = np.flatnonzero(others)
    kinds = np.stack([of[tied] for of in (before, matches, others)])
    kinds, which = np.unique(kinds, axis=1, return_inverse=True)
    value[tied] = np.array([_of_block(*kind) for kind in kinds.T.tolist()])[which.reshape(-1)]
    return value


def _of_block(before: int, matches: int, others: int) -> float:
    """Sum over t of P(the first match is at place t) / (before + t)."""
    t = np.arange(1, others + 2)
    left = matches + others - t + 1  # places from t on
    none_before = np.concatenate([[1.0], np.cumprod((left[:-1] - matches) / left[:-1])])
    return float(np.sum(none_before * matches / left / (before + t)))
