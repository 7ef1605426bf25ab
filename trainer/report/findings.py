"""What a report says about embeddings, as numbers: no pictures and no HTML (docs/report.md)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from trainer.retrieval.distances import all_distances, distances

# A pair of images is a near-duplicate if its distance is at most NEAR_SHARE of the usual distance
# around the two images. It also is one if its distance is at most the usual distance and the
# pictures correlate by at least ALIKE.
NEAR_SHARE = 0.5
ALIKE = 0.99
COMPARED = 2_000  # largest number of pairs whose pictures are compared
PAIRS = 500_000  # largest number of pairs of each kind whose distances are computed
_CHUNK = 4096  # rows


@dataclasses.dataclass(frozen=True, eq=False)
class WrongLabels:
    """Images that lie among the images of another class, highest score first.

    Attributes:
      row: int64 [W], rows of the images.
      other: int64 [W], label of the class among which each image lies.
      votes: int64 [W], number of images of that class among the nearest.
      score: float64 [W], in (0, 1]: 1 - (distance to that class) / (distance to the own class).
      num_alone: number of images that are alone in their class, and therefore not judged.
    """

    row: np.ndarray
    other: np.ndarray
    votes: np.ndarray
    score: np.ndarray
    num_alone: int


@dataclasses.dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of images of two classes, or of two splits, that are almost equal.

    Pairs whose pictures are alike come first. Within each kind, pairs are sorted by `ratio`.

    Attributes:
      pairs: int64 [P, 2], rows of the images.
      distance: float32 [P], distance of the two images.
      ratio: float64 [P], distance divided by the usual distance around the two images, 0 to 1.
      alike: float64 [P], correlation of the pictures, -1 to 1. NaN if they were not compared.
      num_not_compared: number of pairs that are nearer than usual, but whose pictures were not
        compared, because there were too many pairs or a picture is missing.
      num_crowded: number of images whose listed neighbours are all so near that the images may have
        more near-duplicates.
    """

    pairs: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    alike: np.ndarray
    num_not_compared: int
    num_crowded: int


@dataclasses.dataclass(frozen=True, eq=False)
class PairDistances:
    """Distances of pairs of images, either of one class or of two classes.

    Attributes:
      distance: float32 [n].
      num_pairs: number of pairs that exist. If it exceeds n, the n pairs were drawn at random.
    """

    distance: np.ndarray
    num_pairs: int


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Queries of one class whose nearest image is of one other class.

    Attributes:
      label: class of the queries.
      other: class of their nearest images.
      examples: (row of a query, row of its nearest image) for each of these queries, in order.
    """

    label: int
    other: int
    examples: Sequence[tuple[int, int]]


def wrong_labels(
    embedding: np.ndarray, label: np.ndarray, nearest: np.ndarray, *, chunk: int = _CHUNK
) -> WrongLabels:
    """Finds images that have more neighbours in one other class than in their own class.

    More than half of an image's k nearest images have to be of the other class. If the other class
    has fewer than k images, more than half of the class have to be among the k nearest. The other
    class also has to be nearer than the own class. The distance to a class is the mean distance to
    its m nearest images, where m is k or the size of the smaller class, whichever is less.

    Args:
      embedding: float32 [N, D].
      label: integers [N].
      nearest: integers [N, k], rows of the k nearest other images, nearest first.
      chunk: number of rows that are processed at a time.
    """
    _, class_of, counts = np.unique(label, return_inverse=True, return_counts=True)
    sizes = counts[class_of]  # size of each image's class
    members = np.split(np.argsort(class_of, kind="stable"), np.cumsum(counts)[:-1])
    k = nearest.shape[1]
    suspects: list[tuple[float, int, int, int]] = []
    for start in range(0, len(label) if k else 0, chunk):
        rows = np.arange(start, min(start + chunk, len(label)))
        labels = label[nearest[rows]]
        votes = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
        is_own = labels == label[rows, None]
        votes[is_own] = 0
        best = votes.argmax(axis=1)  # the nearest image, if classes have equal numbers of votes
        others, most = nearest[rows, best], votes[rows - start, best]
        is_suspect = (2 * most > np.minimum(k, sizes[others])) & (is_own.sum(axis=1) < most)
        for row, other, count in zip(
            rows[is_suspect], others[is_suspect], most[is_suspect], strict=True
        ):
            if sizes[row] > 1:
                own_class, other_class = members[class_of[row]], members[class_of[other]]
                score = _score(embedding, row, own_class[own_class != row], other_class, k)
                if score > 0:
                    suspects.append((score, int(row), int(label[other]), int(count)))
    suspects.sort(key=lambda suspect: (-suspect[0], suspect[1]))
    integers = np.array([suspect[1:] for suspect in suspects], np.int64).reshape(-1, 3)
    row, other, votes = integers.T
    scores = np.array([suspect[0] for suspect in suspects], np.float64)
    return WrongLabels(row, other, votes, scores, num_alone=int((counts == 1).sum()))


def _score(
    embedding: np.ndarray, row: int, own_class: np.ndarray, other_class: np.ndarray, k: int
) -> float:
    m = min(k, len(own_class), len(other_class))

    def mean_distance(members: np.ndarray) -> float:
        nearest = np.sort(all_distances(embedding[[row]], embedding[members])[0])[:m]
        return float(nearest.mean(dtype=np.float64))

    to_own, to_other = mean_distance(own_class), mean_distance(other_class)
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
    """Finds pairs of two classes, or of two splits, that are nearer than is usual around them.

    The usual distance around an image is the median distance to its k nearest images. Around two
    images, it is the geometric mean of their two medians (local scaling: Zelnik-Manor, Perona:
    Self-Tuning Spectral Clustering, NIPS 2004). So no scale has to be given: the usual distance is
    smaller where classes lie close together. Pairs up to NEAR_SHARE of the usual distance count.
    A model can be sensitive to what copying does to a picture. Therefore all pairs up to the usual
    distance count if their pictures are alike (ALIKE).

    Args:
      label: integers [N].
      split: names [N].
      nearest: integers [N, k], k at least 1, rows of the k nearest other images, nearest first.
      distance: float32 [N, k], distances to these images.
      alike: function from pairs [n, 2] to the similarity of their pictures, floats [n]: -1 to 1, or
        NaN if a picture is missing. None: no pictures are compared.
      compared: largest number of pairs that are passed to `alike`, those of smallest ratio.
    """
    median = np.median(distance.astype(np.float64), axis=1)
    usual = np.sqrt(median[:, None] * median[nearest])
    i, column = np.nonzero(distance <= usual)
    j = nearest[i, column].astype(np.int64)
    is_apart = (label[i] != label[j]) | (split[i] != split[j])
    i, j, column = i[is_apart], j[is_apart], column[is_apart]
    # If two images list each other, the pair was found twice.
    pairs, first = np.unique(np.sort(np.stack([i, j], axis=1)), axis=0, return_index=True)
    near, around = distance[i, column][first], usual[i, column][first]
    ratio = np.divide(near, around, out=np.zeros(len(near)), where=around > 0)  # copies have 0
    order = np.lexsort((pairs[:, 1], pairs[:, 0], ratio))
    pairs, near, ratio = pairs[order], near[order], ratio[order]
    correlation = np.full(len(pairs), np.nan)
    if alike is not None:
        correlation[:compared] = alike(pairs[:compared])
    is_alike = correlation >= ALIKE
    listed = np.flatnonzero(is_alike | (ratio <= NEAR_SHARE))
    listed = listed[np.argsort(~is_alike[listed], kind="stable")]
    has_all_neighbours = nearest.shape[1] == len(label) - 1
    is_crowded = distance[:, -1] <= NEAR_SHARE * usual[:, -1]
    return NearDuplicates(
        pairs[listed],
        near[listed],
        ratio[listed],
        correlation[listed],
        num_not_compared=int(np.isnan(correlation).sum()),
        num_crowded=0 if has_all_neighbours else int(is_crowded.sum()),
    )


def pair_distances(
    queries: np.ndarray,
    query_label: np.ndarray,
    gallery: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    most: int = PAIRS,
) -> tuple[PairDistances, PairDistances]:
    """Distances of queries to images of their own class, and to images of other classes.

    Args:
      queries: float32 [Q, D].
      query_label: integers [Q].
      gallery: embeddings, float32 [N, D], and labels, integers [N]. None: the gallery is the
        queries. Each pair then counts twice, once for each of its images as the query, and no query
        is paired with itself.
      most: largest number of pairs of each kind. If there are more, this number of pairs is drawn
        with replacement.
    """
    searched, gallery_label = gallery or (queries, query_label)
    # In a gallery that is sorted by class, the matches of a query are the block start to stop.
    order = np.argsort(gallery_label, kind="stable")
    start, stop = (
        np.searchsorted(gallery_label[order], query_label, side=side) for side in ("left", "right")
    )
    # Each query's own place in the sorted gallery, or a place beyond it.
    itself = np.argsort(order) if gallery is None else np.full(len(queries), len(order))
    rng = np.random.default_rng(0)

    def draw(counts: np.ndarray, positive: bool) -> PairDistances:
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        number = np.arange(total) if total <= most else np.sort(rng.integers(total, size=most))
        i = np.searchsorted(ends, number, side="right")
        j = number - (ends - counts)[i]
        if positive:
            j += start[i]
            j += j >= itself[i]  # skips the query
        else:
            j += np.where(j >= start[i], stop[i] - start[i], 0)  # skips the block of matches
        return PairDistances(distances(queries, searched, i, order[j]), total)

    matches = stop - start
    return draw(matches - (gallery is None), True), draw(len(order) - matches, False)


def confusions(
    label: np.ndarray, queries: Sequence[int], neighbours: Sequence[Sequence[int]]
) -> list[Confusion]:
    """Pairs of classes where queries of the first class have the second class nearest.

    The pairs are sorted by their number of such queries, highest first.

    Args:
      label: integers [N].
      queries: rows [Q].
      neighbours: for each query, rows, nearest first. A query may have none.
    """
    examples: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
    for query, rows in zip(queries, neighbours, strict=True):
        if rows and label[rows[0]] != label[query]:
            examples[int(label[query]), int(label[rows[0]])].append((query, rows[0]))
    ranked = sorted(examples.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Confusion(*classes, pairs) for classes, pairs in ranked]
