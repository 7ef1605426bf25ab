"""Which rows of a gallery are matches of a query, and which are left out of its ranking."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

MAX_PAIRS = 2**20  # Pairs of a query and a gallery row of its class, in one tile.


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """The rows that are searched, where they are not the queries themselves.

    Attributes:
      embeddings: [N, D].
      labels: integers [N].
      groups: [N], strings or integers; None or "" for a row without a group. None where no row has
        a group.
    """

    embeddings: Any
    labels: Any
    groups: Any = None


class Matches:
    """The gallery rows of each query's class: its matches, and the rows that are left out.

    A row is left out if it has both the class and the group of the query. Where the queries are
    the gallery, the query itself is left out too. A row that is left out counts neither as a match
    nor as a miss, as if it were not in the gallery.

    Args:
      labels: integers [Q], of the queries.
      groups: [Q], of the queries: strings or integers, None or "" for a row without a group. None
        where no row has a group.
      gallery: labels [N] and groups [N] of the gallery; None where the queries are the gallery.
      order: [N], distinct numbers by which gallery rows of a class are sorted; by default their row
        numbers.

    Raises:
      ValueError: shapes do not fit, labels are not integers, or only one of the queries and the
        gallery has groups.

    Attributes:
      num_matches: int64 [Q], matches of each query.
      class_sizes: int64 [Q], gallery rows of each query's class, with those that are left out.
      classes: int64 [Q], place of each query's label among the gallery's distinct labels; -1 where
        the gallery does not have it.
    """

    def __init__(
        self,
        labels: Any,
        groups: Any,
        gallery: tuple[Any, Any] | None = None,
        *,
        order: np.ndarray | None = None,
    ) -> None:
        labels = as_labels(labels, len(labels))
        known: dict[Any, int] = {}
        if gallery is None:
            # Each row without a group has a number of its own, so it leaves out itself only.
            gallery_labels = labels
            row_groups = query_groups = _group_numbers(groups, np.arange(-len(labels), 0), known)
        else:
            if (groups is None) != (gallery[1] is None):
                raise ValueError("groups of the queries and of the gallery: give both or none")
            # Queries and rows without a group have different numbers, so they leave out no row.
            gallery_labels = as_labels(gallery[0], len(gallery[0]), "gallery labels")
            query_groups = _group_numbers(groups, np.full(len(labels), -1), known)
            row_groups = _group_numbers(gallery[1], np.full(len(gallery_labels), -2), known)
        names, row_classes, counts = np.unique(
            gallery_labels, return_inverse=True, return_counts=True
        )
        self._row_groups, self._query_groups = row_groups, query_groups
        within_class = np.arange(len(gallery_labels)) if order is None else order
        self._members = np.lexsort((within_class, row_classes))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        place = np.searchsorted(names, labels)
        exists = place < len(names)
        exists[exists] = names[place[exists]] == labels[exists]
        self.classes = np.where(exists, place, -1)
        self.class_sizes = np.append(counts, 0)[self.classes]
        num_left_out = _count_pairs((row_classes, row_groups), (self.classes, query_groups))
        self.num_matches = self.class_sizes - num_left_out

    def class_rows(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of a query and a gallery row of its class.

        Args:
          queries: row numbers [q] of queries.

        Returns:
          int64 [n], places among `queries`; int64 [n], gallery rows; bool [n], whether the row is a
          match. Sorted by place, then by the order of the gallery rows.
        """
        sizes = self.class_sizes[queries]
        place = np.repeat(np.arange(len(queries)), sizes)
        within = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        row = self._members[self._starts[self.classes[queries]][place] + within]
        match = self._row_groups[row] != self._query_groups[queries][place]
        return place, row, match

    def query_tiles(self, queries: np.ndarray, max_queries: int) -> list[np.ndarray]:
        """Divides queries [q] into tiles, each with places among them.

        A tile has at most max_queries queries, and at most MAX_PAIRS pairs of `class_rows` unless
        it has one query only. Queries are sorted by class, since queries of one class are compared
        with the same rows.
        """
        places = np.argsort(self.classes[queries], kind="stable")
        ends = np.cumsum(self.class_sizes[queries[places]])
        tiles, start = [], 0
        while start < len(places):
            max_end = (ends[start - 1] if start else 0) + MAX_PAIRS
            end = min(start + max_queries, int(np.searchsorted(ends, max_end, side="right")))
            tiles.append(places[start : max(start + 1, end)])
            start += len(tiles[-1])
        return tiles


def as_labels(labels: Any, count: int, name: str = "labels") -> np.ndarray:
    """Converts labels to an array [count]; error messages call it `name`.

    Raises:
      ValueError: the labels are not integers [count].
    """
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{name} are {list(labels.shape)}, must be [{count}]")
    if count and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} are {labels.dtype}, must be integers")
    return labels


def _group_numbers(groups: Any, alone: np.ndarray, known: dict[Any, int]) -> np.ndarray:
    """int64 [N], a number for each group, the same in all calls with one `known`.

    Rows that have no group get the negative numbers `alone` [N].
    """
    if groups is not None and len(groups) != len(alone):
        raise ValueError(f"groups are [{len(groups)}], must be [{len(alone)}]")
    if groups is None:
        return alone
    numbers = [
        number if group is None or group == "" else known.setdefault(group, len(known))
        for group, number in zip(groups, alone.tolist(), strict=True)
    ]
    return np.array(numbers, np.int64)


def _count_pairs(
    rows: tuple[np.ndarray, np.ndarray], queries: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """[Q], how many rows [N] have the (class, group) of each query [Q]."""
    classes, groups = (np.concatenate(both) for both in zip(rows, queries, strict=True))
    groups = groups - groups.min(initial=0)
    pairs = (classes + 1) * (groups.max(initial=0) + 1) + groups
    _, codes = np.unique(pairs, return_inverse=True)
    num_rows = len(rows[0])
    return np.bincount(codes[:num_rows], minlength=len(codes) + 1)[codes[num_rows:]]
