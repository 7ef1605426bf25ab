"""What a report says of embeddings, as numbers: no pictures and no HTML (docs/report.md)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from trainer.retrieval.distances import all_distances, distances

NEAR_SHARE = 0.5  # of the usual distance around two images: what is nearer is a near-duplicate,
ALIKE = 0.99  # and so is what is nearer than usual, and whose pictures correlate so much;
COMPARED = 2_000  # so many pairs of pictures are compared, at most
PAIRS = 500_000  # of each kind that are measured, at most
_CHUNK = 4096  # rows


@dataclasses.dataclass(frozen=True, eq=False)
class WrongLabels:
    """Images that sit amid another class, the surest first.

    Attributes:
      row: int64 [W].
      other: int64 [W], label of the class they sit in.
      votes: int64 [W], images of that class among the nearest.
      score: float64 [W], in (0, 1]: 1 - (distance to that class) / (distance to its own).
      num_alone: images alone in their class, which are not judged.
    """

    row: np.ndarray
    other: np.ndarray
    votes: np.ndarray
    score: np.ndarray
    num_alone: int


@dataclasses.dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of images of two classes, or of two splits, that are nearly the same.

    First those whose pictures are alike, and of each kind the nearest first.

    Attributes:
      pairs: int64 [P, 2], rows.
      distance: float32 [P].
      ratio: float64 [P], of the distance to the usual one around the two, at most 1.
      alike: float64 [P], correlation of their pictures; NaN where they were not compared.
      num_not_compared: pairs nearer than usual whose pictures were not: too many, or missing.
      num_crowded: images whose listed neighbours are all so near that there may be more pairs.
    """

    pairs: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    alike: np.ndarray
    num_not_compared: int
    num_crowded: int


@dataclasses.dataclass(frozen=True, eq=False)
class PairDistances:
    """Distances of pairs of a kind.

    Attributes:
      distance: float32 [n].
      num_pairs: pairs there are; where that is more than n, they were drawn at random.
    """

    distance: np.ndarray
    num_pairs: int


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Queries of a class whose nearest image is of another.

    Attributes:
      label: of the queries.
      other: of the images found.
      examples: (query, row found) of each such query, in their order.
    """

    label: int
    other: int
    examples: Sequence[tuple[int, int]]


def wrong_labels(
    embedding: np.ndarray, label: np.ndarray, nearest: np.ndarray, *, chunk: int = _CHUNK
) -> WrongLabels:
    """Images of which more neighbours belong to one other class than to their own.

    More than half of the k nearest have to be of that class, or of the images it has if these are
    fewer than k; and it has to be nearer than the image's own class. The distance to a class is the
    mean distance to its m nearest images, m = k or what the smaller of the two classes has.

    Args:
      embedding: float32 [N, D].
      label: integers [N].
      nearest: integers [N, k], rows of the nearest of all others, nearest first.
      chunk: rows at a time.
    """
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    sizes = counts[place]  # of each image's class
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(counts)[:-1])
    k = nearest.shape[1]
    suspects: list[tuple[float, int, int, int]] = []
    for start in range(0, len(label) if k else 0, chunk):
        rows = np.arange(start, min(start + chunk, len(label)))
        labels = label[nearest[rows]]
        votes = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
        own = labels == label[rows, None]
        votes[own] = 0
        best = votes.argmax(axis=1)  # of equal ones the nearest
        found, most = nearest[rows, best], votes[rows - start, best]
        amid = (2 * most > np.minimum(k, sizes[found])) & (own.sum(axis=1) < most)
        for row, other, count in zip(rows[amid], found[amid], most[amid], strict=True):
            if sizes[row] > 1:
                score = _score(embedding, row, members[place[row]], members[place[other]], k)
                if score > 0:
                    suspects.append((score, int(row), int(label[other]), int(count)))
    suspects.sort(key=lambda suspect: (-suspect[0], suspect[1]))
    return WrongLabels(
        row=np.array([row for _, row, _, _ in suspects], np.int64),
        other=np.array([other for _, _, other, _ in suspects], np.int64),
        votes=np.array([count for _, _, _, count in suspects], np.int64),
        score=np.array([score for score, _, _, _ in suspects], np.float64),
        num_alone=int((counts == 1).sum()),
    )


def _score(embedding: np.ndarray, row: int, own: np.ndarray, other: np.ndarray, k: int) -> float:
    own = own[own != row]
    m = min(k, len(own), len(other))
    to_own, to_other = (
        float(np.sort(all_distances(embedding[[row]], embedding[of])[0])[:m].mean(dtype=np.float64))
        for of in (own, other)
    )
    return 1 - to_other / to_own if to_own > 0 else 0.0


def near_duplicates(
    label: np.ndarray,
    split: np.ndarray,
    nearest: np.ndarray,
    distance: np.ndarray,
    *,
    alike: Callable[[np.ndarray], np.ndarray] | None = None,
    compared: int = COMPARED,
) -> NearDuplicates:
    """Pairs of two classes or two splits that are nearer than is usual around them.

    What is usual around an image is the median distance to its k nearest; around two, the geometric
    mean of both (local scaling: Zelnik-Manor, Perona: Self-Tuning Spectral Clustering, NIPS 2004).
    Pairs up to half of that (NEAR_SHARE) count, so that no scale has to be given: classes that lie
    close together have a smaller one. A model can be sensitive to what copying does to a picture:
    pairs up to all of that count if their pictures are alike (ALIKE).

    Args:
      label: integers [N].
      split: [N], names.
      nearest: integers [N, k], rows of the nearest of all others, nearest first.
      distance: float32 [N, k], to them.
      alike: how alike the pictures of pairs [n, 2] are, [n]: -1 to 1, or NaN; None: not compared.
      compared: pairs that it is asked for, at most, nearest first.
    """
    if not nearest.size:
        none = np.zeros(0)
        pairs = np.zeros((0, 2), np.int64)
        return NearDuplicates(pairs, none.astype(np.float32), none, none, 0, 0)
    median = np.median(distance.astype(np.float64), axis=1)
    usual = np.sqrt(median[:, None] * median[nearest])
    i, column = np.nonzero(distance <= usual)
    j = nearest[i, column].astype(np.int64)
    apart = (label[i] != label[j]) | (split[i] != split[j])
    i, j, column = i[apart], j[apart], column[apart]
    # From either side, if both list each other.
    pairs, first = np.unique(np.sort(np.stack([i, j], axis=1)), axis=0, return_index=True)
    i, column = i[first], column[first]
    found, around = distance[i, column], usual[i, column]
    ratio = np.divide(found, around, out=np.zeros(len(found)), where=around > 0)  # copies: 0
    order = np.lexsort((pairs[:, 1], pairs[:, 0], ratio))
    pairs, found, ratio = pairs[order], found[order], ratio[order]
    agree = np.full(len(pairs), np.nan)
    if alike is not None:
        agree[:compared] = alike(pairs[:compared])
    same = agree >= ALIKE
    kept = np.flatnonzero(same | (ratio <= NEAR_SHARE))
    kept = kept[np.argsort(~same[kept], kind="stable")]
    full = nearest.shape[1] == len(label) - 1
    return NearDuplicates(
        pairs[kept],
        found[kept],
        ratio[kept],
        agree[kept],
        num_not_compared=int(np.isnan(agree).sum()),
        num_crowded=0 if full else int((distance[:, -1] <= NEAR_SHARE * usual[:, -1]).sum()),
    )


def pair_distances(
    queries: np.ndarray,
    query_label: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_label: np.ndarray | None = None,
    *,
    most: int = PAIRS,
    seed: int = 0,
) -> tuple[PairDistances, PairDistances]:
    """Distances of queries to images of their class, and to those of others.

    Args:
      queries: float32 [Q, D].
      query_label: integers [Q].
      gallery: float32 [N, D]; None: the queries, each pair from both sides, none with itself.
      gallery_label: integers [N].
      most: pairs of each kind; of more, so many are drawn with replacement.
      seed: of the drawing.
    """
    alone = gallery is None or gallery_label is None
    if gallery is None or gallery_label is None:
        gallery, gallery_label = queries, query_label
    # The gallery by class: matches of a query are a block of it, the others what is around it.
    order = np.argsort(gallery_label, kind="stable")
    start, stop = (
        np.searchsorted(gallery_label[order], query_label, side=side) for side in ("left", "right")
    )
    place = np.argsort(order)[: len(queries)] if alone else np.full(len(queries), len(order))
    rng = np.random.default_rng(seed)

    def measured(counts: np.ndarray, positive: bool) -> PairDistances:
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        number = np.arange(total) if total <= most else np.sort(rng.integers(total, size=most))
        i = np.searchsorted(ends, number, side="right")
        j = number - (ends - counts)[i]
        if positive:
            j += start[i]
            j += j >= place[i]  # past the query itself
        else:
            j += np.where(j >= start[i], stop[i] - start[i], 0)
        return PairDistances(distances(queries, gallery, i, order[j]), total)

    matches = stop - start
    return measured(matches - int(alone), True), measured(len(order) - matches, False)


def confusions(
    query_label: np.ndarray, gallery_label: np.ndarray, counted: Sequence[Sequence[int]]
) -> list[Confusion]:
    """Ordered pairs of classes by how many queries of the one have the other nearest, most first.

    Args:
      query_label: integers [Q].
      gallery_label: integers [N].
      counted: for each query, rows of the gallery, nearest first; maybe none.
    """
    found: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
    for query, rows in enumerate(counted):
        if rows and gallery_label[rows[0]] != query_label[query]:
            pair = int(query_label[query]), int(gallery_label[rows[0]])
            found[pair].append((query, rows[0]))
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Confusion(label, other, examples) for (label, other), examples in ranked]
