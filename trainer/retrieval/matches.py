"""Which rows of a gallery are matches of a query, and which do not count."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

PAIRS = 2**20  # of queries and rows of their class, in one tile


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """What is searched, where that is not the queries themselves.

    embeddings: [N, D].
    labels: integers [N].
    groups: [N], strings or integers; None or "" for a row of no group.
    """

    embeddings: Any
    labels: Any
    groups: Any = None


class Matches:
    """The rows of the gallery that have a query's class: its matches, and those that are left out.

    Left out are the rows of its class and its group, and, where the queries are the gallery, the
    query itself. They are as if they were not in the gallery: neither matches nor misses.

    Args:
      labels: integers [Q] of the queries.
      groups: [Q] of the queries, strings or integers, None or "" for a row of none; or None.
      gallery: labels [N] and groups, likewise, of what is searched; None: the queries themselves.
      order: [N], distinct numbers, by which rows of the gallery are given; their own by default.

    Raises:
      ValueError: shapes do not fit, or labels are not integers.

    Attributes:
      num_matches: int64 [Q].
      class_sizes: int64 [Q], all rows of the gallery of the query's class.
      classes: int64 [Q], places among the labels of the gallery; -1 where it has no such label.
    """

    def __init__(
        self,
        labels: Any,
        groups: Any,
        gallery: tuple[Any, Any] | None = None,
        *,
        order: np.ndarray | None = None,
    ) -> None:
        count = len(labels)
        labels = as_labels(labels, count)
        own = np.arange(count)
        if gallery is None:
            kept = labels
            # A row of no group is its own, so that each row is left out with its group.
            of_query = of_row = own if groups is None else _codes(groups, count, own - count)
        else:
            kept = as_labels(gallery[0], len(gallery[0]), "gallery labels")
            size = len(kept)
            of_query, of_row = np.full(count, -1), np.full(size, -2)  # no group is another's
            if (groups is None) != (gallery[1] is None):
                raise ValueError("groups of the queries and of the gallery: both or none")
            if groups is not None:
                _check_groups(groups, count)
                _check_groups(gallery[1], size)
                codes = _codes(
                    [*groups, *gallery[1]], count + size, np.concatenate([of_query, of_row])
                )
                of_query, of_row = codes[:count], codes[count:]
        names, rows_class, counts = np.unique(kept, return_inverse=True, return_counts=True)
        self._groups, self._of_query = of_row, of_query
        self._members = np.lexsort((np.arange(len(kept)) if order is None else order, rows_class))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        place = np.searchsorted(names, labels)
        known = place < len(names)
        known[known] = names[place[known]] == labels[known]
        self.classes = np.where(known, place, -1)
        self.class_sizes = np.append(counts, 0)[self.classes]
        left_out = _count_pairs((rows_class, of_row), (self.classes, of_query))
        self.num_matches = self.class_sizes - left_out

    def of_class(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of queries [q]: their places and the gallery rows of their class, and which are matches.

        Returns int64 [n], int64 [n], bool [n], by query and then by the order of rows.
        """
        sizes = self.class_sizes[queries]
        place = np.repeat(np.arange(len(queries)), sizes)
        within = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        row = self._members[self._starts[self.classes[queries]][place] + within]
        match = self._groups[row] != self._of_query[queries][place]
        return place, row, match

    def tiles(self, queries: np.ndarray, most: int) -> list[np.ndarray]:
        """Places among queries [q], at most `most` at a time, and PAIRS of what `of_class` gives.

        By class, so that the queries of a tile share what they are compared with.
        """
        places = np.argsort(self.classes[queries], kind="stable")
        ends = np.cumsum(self.class_sizes[queries[places]])
        tiles, start = [], 0
        while start < len(places):
            pairs = (ends[start - 1] if start else 0) + PAIRS
            end = min(start + most, int(np.searchsorted(ends, pairs, side="right")))
            tiles.append(places[start : max(start + 1, end)])
            start += len(tiles[-1])
        return tiles


def as_labels(labels: Any, count: int, what: str = "labels") -> np.ndarray:
    """[count] integers; raises ValueError where they are not."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{what} are {list(labels.shape)}, must be [{count}]")
    if count and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} are {labels.dtype}, must be integers")
    return labels


def _check_groups(groups: Any, count: int) -> None:
    if len(groups) != count:
        raise ValueError(f"groups are [{len(groups)}], must be [{count}]")


def _codes(groups: Any, count: int, none: np.ndarray) -> np.ndarray:
    """[N] int64: the same number, 0 and up, for the same group; `none` for a row of none."""
    _check_groups(groups, count)
    numbers: dict[Any, int] = {}
    codes = [
        alone if group is None or group == "" else numbers.setdefault(group, len(numbers))
        for group, alone in zip(groups, none.tolist(), strict=True)
    ]
    return np.array(codes, np.int64)


def _count_pairs(
    of: tuple[np.ndarray, np.ndarray], sought: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """How often each sought pair of numbers [Q] is among others [N]."""
    classes, groups = (np.concatenate(both) for both in zip(of, sought, strict=True))
    groups = groups - groups.min(initial=0)
    pairs = (classes + 1) * (groups.max(initial=0) + 1) + groups
    _, codes = np.unique(pairs, return_inverse=True)
    size = len(of[0])
    return np.bincount(codes[:size], minlength=len(codes) + 1)[codes[size:]]
