"""Metrics of a ranking with ties: their expected values over all orders of the tied rows.

The method is that of McSherry, Najork: Computing Information Retrieval Performance Measures
Efficiently in the Presence of Tied Scores, ECIR 2008. In the formulas, a block has m tied rows, of
which p are matches. It begins after b rows, of which a are matches. In a random order of the block,
each of its places holds a match with probability p / m.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.retrieval.tied_ranks import Blocks


def expected(blocks: Blocks, num_matches: np.ndarray, cutoffs: Sequence[int]) -> np.ndarray:
    """The expected metrics of each query.

    Args:
      blocks: of all queries, see `Blocks`.
      num_matches: int64 [q], R of each query; at least 1.
      cutoffs: values of K.

    Returns:
      float64 [q, len(cutoffs) + 3]: Recall@K for each K, MAP@R, R-precision, reciprocal rank.
    """
    count, r = len(num_matches), num_matches[blocks.query]
    m = blocks.matches + blocks.others
    reached = np.clip(r - blocks.before, 0, m)  # Places of the block among the R nearest rows.
    matches_reached = blocks.matches * reached / m
    precision_sums = _precision_sums(blocks, m, reached)
    place = np.searchsorted(blocks.query, np.arange(count))
    first = (blocks.before[place], blocks.matches[place], blocks.others[place])
    columns = [
        *(_recall(*first, cutoff) for cutoff in cutoffs),
        np.bincount(blocks.query, precision_sums, count) / num_matches,
        np.bincount(blocks.query, matches_reached, count) / num_matches,
        _reciprocal_rank(*first),
    ]
    return np.stack(columns, axis=1)


def _precision_sums(blocks: Blocks, m: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """What each block adds to the sum of precisions, R x AP@R, [B].

    Place s of the block is a match with probability p / m. If it is one, each of the s - 1 places
    before it in the block is a match with probability c = (p - 1) / (m - 1). So the precision at
    place s is (a + 1 + c (s - 1)) / (b + s). Summed over the places 1 to s, that is
    c s + (a + 1 - c (b + 1)) (H(b + s) - H(b)) with the harmonic numbers H.
    """
    p, a, b = blocks.matches, blocks.matches_before, blocks.before
    c = np.where(m > 1, (p - 1) / np.maximum(m - 1, 1), 0.0)
    start = np.where(reached > 0, b, 0)  # Where no place is reached, b may be large: not needed.
    harmonic = np.concatenate(
        [[0.0], np.cumsum(1 / np.arange(1, (start + reached).max(initial=0) + 1))]
    )
    spread = harmonic[start + reached] - harmonic[start]
    spread = np.where(reached == 1, 1 / (b + 1), spread)  # Without rounding error.
    return p / m * (c * reached + (a + 1 - c * (b + 1)) * spread)


def _recall(before: np.ndarray, matches: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """Probability [q] that a match is among the K nearest rows.

    No match is among them with probability (others / m) ((others - 1) / (m - 1)) ..., with a factor
    for each place of the first block that is among the K nearest.
    """
    places = np.clip(k - before, 0, matches + others)
    none = np.ones(len(before))
    for i in range(int(places.max(initial=0))):
        has_place = places > i
        if not none[has_place].any():
            break
        none[has_place] *= np.maximum(others[has_place] - i, 0) / (matches + others - i)[has_place]
    return 1 - none


def _reciprocal_rank(before: np.ndarray, matches: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Expected 1 / rank of the first match, [q]."""
    value = 1 / (before + 1)
    tied = np.flatnonzero(others)
    blocks = np.stack([counts[tied] for counts in (before, matches, others)])
    blocks, which = np.unique(blocks, axis=1, return_inverse=True)
    of_block = np.array([_block_reciprocal_rank(*block) for block in blocks.T.tolist()])
    value[tied] = of_block[which.reshape(-1)]
    return value


def _block_reciprocal_rank(before: int, matches: int, others: int) -> float:
    """Sum over t of P(the first match is at place t of the block) / (before + t)."""
    t = np.arange(1, others + 2)
    remaining = matches + others - t + 1  # Places from t on.
    none_before = np.concatenate([[1.0], np.cumprod((remaining[:-1] - matches) / remaining[:-1])])
    return float(np.sum(none_before * matches / remaining / (before + t)))
