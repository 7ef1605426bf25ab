"""The entries of the page's lists: a title, a text, and pictures of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from trainer.pictures.thumbnails import Thumbnails
from trainer.report.analysis import Analysis
from trainer.report.inputs import Inputs
from trainer.retrieval.metrics import MAP_AT_R, RECIPROCAL_RANK, recall_name

# The largest numbers of entries in a list.
BEST_CLASSES, WORST_CLASSES = 5, 10
CONFUSED_CLASSES = 10
QUERIES = 8

# The largest numbers of pictures in an entry.
OF_CLASS = 4
CONFUSED_QUERIES = 2
OF_QUERY = 7  # neighbours
OF_WRONG_LABEL = 3  # neighbours


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture with its caption.

    Attributes:
      picture: data: URI of the picture, None if it is missing.
      caption: text below the picture: the class name.
      name: source id and split of the image.
      match: whether the image is of the query's class. None if the image is no neighbour.
    """

    picture: str | None
    caption: str
    name: str
    match: bool | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a list.

    Attributes:
      title: its heading.
      text: what is said about it.
      tiles: its pictures.
    """

    title: str
    text: str
    tiles: Sequence[Tile]


class Entries:
    """Makes the lists of a report.

    Args:
      inputs: what the report was made from.
      analysis: the numbers that were computed.
      thumbnails: the pictures.
    """

    def __init__(self, inputs: Inputs, analysis: Analysis, thumbnails: Thumbnails) -> None:
        self._inputs, self._analysis, self._thumbnails = inputs, analysis, thumbnails
        self._label, self._names = inputs.embeddings.label, inputs.names
        # The confusions are sorted by frequency. The most frequent one of a class is kept.
        self._confusion_of = {each.label: each for each in reversed(analysis.confusions)}

    def wrong_labels(self, most: int) -> list[Entry]:
        """The likely wrong labels of highest score, each with its nearest images."""
        wrong = self._analysis.wrong_labels
        entries = []
        for row, other, votes, score in zip(
            wrong.row[:most].tolist(), wrong.other.tolist(), wrong.votes, wrong.score, strict=False
        ):
            label, nearest = int(self._label[row]), self._analysis.nearest[row]
            title = f"labelled {self._names[label]}, lies in {self._names[other]}"
            text = (
                f"score {fixed(score)}; {votes} of its {len(nearest)} nearest are"
                f" {self._names[other]}; {self._image_name(row)}"
            )
            neighbours = self._neighbours(label, nearest[:OF_WRONG_LABEL].tolist())
            entries.append(Entry(title, text, [self._tile(row), *neighbours]))
        return entries

    def near_duplicates(self, most: int) -> list[Entry]:
        """The first pairs of near-duplicates."""
        near = self._analysis.near_duplicates
        entries = []
        for pair, distance, ratio, alike in zip(
            near.pairs[:most].tolist(), near.distance, near.ratio, near.alike, strict=False
        ):
            one, two = (self._inputs.embeddings.split[row] for row in pair)
            classes = [self._names[int(self._label[row])] for row in pair]
            differs = {"two classes": classes[0] != classes[1], "two splits": one != two}
            text = " and ".join(name for name in differs if differs[name])
            text += f"; distance {distance:.2g}, {ratio:.2f} of the usual"
            if not np.isnan(alike):
                text += f"; the pictures correlate by {alike:.2f}"
            text += f"; {' and '.join(self._image_name(row) for row in pair)}"
            title = f"{classes[0]} ({one}) and {classes[1]} ({two})"
            entries.append(Entry(title, text, [self._tile(row) for row in pair]))
        return entries

    def confusions(self) -> list[Entry]:
        """The most frequent confusions, each with some queries and their nearest images."""
        metrics = self._analysis.metrics
        total = dict(zip(metrics.class_labels.tolist(), metrics.class_counts.tolist(), strict=True))
        entries = []
        for each in self._analysis.confusions[:CONFUSED_CLASSES]:
            title = f"{self._names[each.label]} taken for {self._names[each.other]}"
            text = f"{len(each.examples):,} of {_queries(total[each.label])}"
            pairs = each.examples[:CONFUSED_QUERIES]
            entries.append(Entry(title, text, [self._tile(row) for pair in pairs for row in pair]))
        return entries

    def worst_and_best_classes(self) -> tuple[list[Entry], list[Entry]]:
        """The classes with the lowest MAP@R, lowest first, and with the highest, highest first.

        No class is in both lists. If there are few classes, the worst ones take precedence.
        """
        metrics = self._analysis.metrics
        order = np.lexsort((metrics.class_labels, metrics.of_classes[MAP_AT_R])).tolist()
        num_worst = min(WORST_CLASSES, (len(order) + 1) // 2)
        worst, best = order[:num_worst], order[num_worst:][::-1][:BEST_CLASSES]
        return [self._class(place) for place in worst], [self._class(place) for place in best]

    def _class(self, place: int) -> Entry:
        metrics = self._analysis.metrics
        label = int(metrics.class_labels[place])
        text = (
            f"MAP@R {fixed(metrics.of_classes[MAP_AT_R][place])}, Recall@1"
            f" {fixed(metrics.of_classes[recall_name(1)][place])};"
            f" {_queries(int(metrics.class_counts[place]))}"
        )
        if confusion := self._confusion_of.get(label):
            other = self._names[confusion.other]
            text += f", {len(confusion.examples):,} of them taken for {other}"
        queries = self._inputs.queries
        rows = queries[self._label[queries] == label][:OF_CLASS].tolist()
        return Entry(self._names[label], text, [self._tile(row) for row in rows])

    def failed_queries(self) -> list[Entry]:
        """The queries whose first match has the worst rank, each with its neighbours."""
        metrics = self._analysis.metrics
        ranks = metrics.of_queries[RECIPROCAL_RANK]
        order = np.argsort(ranks, kind="stable")
        return self._queries([place for place in order.tolist() if ranks[place] < 1][:QUERIES])

    def random_queries(self) -> list[Entry]:
        """Some queries drawn at random, each with its neighbours."""
        num_queries = self._analysis.metrics.num_queries
        return self._queries(np.sort(np.random.default_rng(0).permutation(num_queries)[:QUERIES]))

    def _queries(self, places: Sequence[int] | np.ndarray) -> list[Entry]:
        """Entries of queries by their places among the queries that have a match."""
        metrics = self._analysis.metrics
        entries = []
        for place in places:
            query = int(metrics.queries[place])
            row = int(self._inputs.queries[query])
            label = int(self._label[row])
            rank = 1 / metrics.of_queries[RECIPROCAL_RANK][place]
            which = "the nearest" if rank == 1 else f"number {rank:,.0f}"
            text = f"the first match is {which}; {self._image_name(row)}"
            neighbours = self._neighbours(label, self._analysis.neighbours[query][:OF_QUERY])
            entries.append(Entry(self._names[label], text, [self._tile(row), *neighbours]))
        return entries

    def _neighbours(self, label: int, rows: Sequence[int]) -> list[Tile]:
        return [self._tile(row, match=bool(self._label[row] == label)) for row in rows]

    def _tile(self, row: int, *, match: bool | None = None) -> Tile:
        class_name = self._names[int(self._label[row])]
        return Tile(self._thumbnails.of(row), class_name, self._image_name(row), match)

    def _image_name(self, row: int) -> str:
        embeddings = self._inputs.embeddings
        return f"{embeddings.source_id[row]} ({embeddings.split[row]})"


def fixed(value: float) -> str:
    """A value as the page shows it, with three decimals."""
    return f"{value:.3f}"


def _queries(count: int) -> str:
    return f"{count:,} {'query' if count == 1 else 'queries'}"
