"""The page: which findings it shows, with which pictures and in which words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from trainer.evaluation.results import COLUMNS, TRAINED
from trainer.pictures.thumbnails import Thumbnails
from trainer.report.analysis import DEEPEST, NEIGHBOURS, Analysis
from trainer.report.charts import Line, histogram, line_chart
from trainer.report.findings import Confusion
from trainer.report.inputs import Inputs
from trainer.retrieval.confidence import confidence_intervals
from trainer.retrieval.metrics import MAP_AT_R, RECIPROCAL_RANK, recall_name

BEST, WORST = 5, 10  # classes
CONFUSED = 10  # pairs of classes
QUERIES = 8  # of each kind,
OF_QUERY = 7  # nearest of each that are shown
OF_LABEL = 3  # and of each likely wrong label
BINS = 60
STALE = 0.001  # of MAP@R: more than embedding again changes


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture with what stands below it.

    Attributes:
      picture: its data: URI, None where there is none.
      caption: below it.
      name: its source id.
      match: whether it is of the class sought; None where nothing is sought.
    """

    picture: str | None
    caption: str
    name: str
    match: bool | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something of a list: words, and pictures.

    Attributes:
      title: what it is.
      text: what is said of it.
      tiles: its pictures.
    """

    title: str
    text: str
    tiles: Sequence[Tile]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A metric's value, and its interval if there is one."""

    value: float | None
    interval: tuple[float, float] | None = None


def render(inputs: Inputs, found: Analysis, thumbnails: Thumbnails, *, listed: int) -> str:
    """The HTML.

    Args:
      inputs: what was read.
      found: what was computed of it.
      thumbnails: the pictures.
      listed: wrong labels and near-duplicates that are shown, at most of each.
    """
    builder = _Builder(inputs, found, thumbnails)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fixed"] = _fixed
    return environment.get_template("page.html.jinja").render(
        inputs=inputs,
        info=inputs.info,
        shown=COLUMNS,
        metrics=found.metrics,
        found=found,
        deepest=DEEPEST,
        neighbours=NEIGHBOURS,
        table=builder.table(),
        stale=builder.stale(),
        recall=builder.recall_curve(),
        distances=builder.distances(),
        curves=builder.training_curves(),
        worst=builder.classes(best=False),
        best=builder.classes(best=True),
        confusions=builder.confusions(),
        num_confused=sum(len(each.examples) for each in found.confusions),
        num_unseen=sum(not found.neighbours[query] for query in found.metrics.queries.tolist()),
        random=builder.random_queries(),
        failed=builder.failed_queries(),
        wrong=builder.wrong_labels(listed),
        twins=builder.near_duplicates(listed),
        missing=thumbnails.missing,
    )


class _Builder:
    def __init__(self, inputs: Inputs, found: Analysis, thumbnails: Thumbnails) -> None:
        self._in, self._found, self._thumbnails = inputs, found, thumbnails
        self._label = inputs.embeddings.label

    def table(self) -> dict[str, dict[str, Cell]]:
        """Name of what embedded the images -> metric -> its value."""
        metrics = self._found.metrics
        ends = confidence_intervals(metrics)
        trained = {
            name: Cell(metrics.mean[name], None if math.isnan(ends[name][0]) else ends[name])
            for name in COLUMNS
        }
        rows = {TRAINED: trained}
        evaluation: Mapping[str, Any] = self._in.evaluation or {"results": {}}
        if self._in.rules_differ:
            return rows
        for of, values in reversed(evaluation["results"].items()):
            if of == TRAINED:
                continue
            known = evaluation.get("intervals", {}).get(of) or {}
            rows[of] = {
                name: Cell(values.get(name), tuple(known[name]) if known.get(name) else None)
                for name in COLUMNS
            }
        return rows

    def stale(self) -> float | None:
        """MAP@R of the evaluation's trained model, where it is not that of the embeddings."""
        if self._in.evaluation is None or self._in.rules_differ:
            return None
        value: float | None = self._in.evaluation["results"].get(TRAINED, {}).get(MAP_AT_R)
        near = value is None or abs(value - self._found.metrics.map_at_r) <= STALE
        return None if near else value

    def recall_curve(self) -> Markup:
        k = range(1, DEEPEST + 1)
        recall = [self._found.metrics.mean[recall_name(each)] for each in k]
        low = math.floor(min(recall) * 10) / 10
        line = Line(TRAINED, [*k], recall)
        return line_chart([line], x_label="K", y_label="Recall@K", y_range=(min(low, 0.9), 1.0))

    def distances(self) -> Markup:
        both = {"same class": self._found.positives, "other classes": self._found.negatives}
        stop = max((float(each.distance.max(initial=0)) for each in both.values()), default=0)
        lines = [
            histogram(name, each.distance, stop=stop or 1.0, bins=BINS)
            for name, each in both.items()
        ]
        return line_chart(lines, x_label="squared distance", y_label="share of pairs")

    def training_curves(self) -> dict[str, Markup]:
        """Title -> chart; none without a history."""

        def line(kind: str, name: str, shown: str) -> Line:
            rows = [
                (row["step"], row[name])
                for row in self._in.history
                if row.get("kind") == kind and row.get(name) is not None
            ]
            return Line(shown, [step for step, _ in rows], [value for _, value in rows])

        charts = {
            "Loss": ([line("train", "loss", "training")], "loss", None),
            "On val": (
                [line("val", MAP_AT_R, "MAP@R"), line("val", recall_name(1), "Recall@1")],
                "metric",
                (0.0, 1.0),
            ),
            "Active triplets": ([line("train", "active", "training")], "share", (0.0, 1.0)),
        }
        return {
            title: line_chart(lines, x_label="step", y_label=label, y_range=limits)
            for title, (lines, label, limits) in charts.items()
            if any(len(each.x) for each in lines)
        }

    def classes(self, *, best: bool) -> list[Entry]:
        """By MAP@R; the best from the top, the worst from the bottom; none is in both."""
        metrics = self._found.metrics
        of_class = metrics.of_classes[MAP_AT_R]
        order = np.lexsort((metrics.class_labels, of_class))
        worst = min(WORST, (len(order) + 1) // 2)
        chosen = order[worst:][::-1][:BEST] if best else order[:worst]
        confused: dict[int, Confusion] = {}
        for each in self._found.confusions:
            confused.setdefault(each.label, each)
        entries = []
        for place in chosen.tolist():
            label = int(metrics.class_labels[place])
            text = (
                f"MAP@R {_fixed(of_class[place])}, Recall@1"
                f" {_fixed(metrics.of_classes[recall_name(1)][place])};"
                f" {_many(int(metrics.class_counts[place]), 'query', 'queries')}"
            )
            if label in confused:
                most = confused[label]
                text += f", {len(most.examples):,} of them taken for {self._name(most.other)}"
            rows = self._in.queries[self._label[self._in.queries] == label][:4]
            entries.append(Entry(self._name(label), text, [self._tile(r) for r in rows.tolist()]))
        return entries

    def confusions(self) -> list[Entry]:
        metrics = self._found.metrics
        total = dict(zip(metrics.class_labels.tolist(), metrics.class_counts.tolist(), strict=True))
        entries = []
        for each in self._found.confusions[:CONFUSED]:
            shown = [row for pair in each.examples[:2] for row in pair]
            entries.append(
                Entry(
                    f"{self._name(each.label)} taken for {self._name(each.other)}",
                    f"{len(each.examples):,} of {_many(total[each.label], 'query', 'queries')}",
                    [self._tile(row) for row in shown],
                )
            )
        return entries

    def random_queries(self) -> list[Entry]:
        among = self._found.metrics.queries
        rng = np.random.default_rng(0)
        return self._queries(np.sort(rng.permutation(among)[:QUERIES]))

    def failed_queries(self) -> list[Entry]:
        """Those whose first match comes last."""
        metrics = self._found.metrics
        ranks = metrics.of_queries[RECIPROCAL_RANK]
        order = np.argsort(ranks, kind="stable")
        return self._queries(metrics.queries[[at for at in order if ranks[at] < 1][:QUERIES]])

    def _queries(self, chosen: np.ndarray) -> list[Entry]:
        rank = dict(
            zip(
                self._found.metrics.queries.tolist(),
                1 / self._found.metrics.of_queries[RECIPROCAL_RANK],
                strict=True,
            )
        )
        entries = []
        for query in chosen.tolist():
            row = int(self._in.queries[query])
            label = int(self._label[row])
            first = rank[query]
            text = (
                "the first match is the nearest"
                if first == 1
                else (f"the first match is number {first:,.0f}")
            )
            text += f"; {self._where(row)}"
            tiles = [self._tile(row)] + [
                self._tile(each, match=bool(self._label[each] == label))
                for each in self._found.neighbours[query][:OF_QUERY]
            ]
            entries.append(Entry(self._name(label), text, tiles))
        return entries

    def wrong_labels(self, listed: int) -> list[Entry]:
        wrong = self._found.wrong_labels
        entries = []
        for place in range(min(listed, len(wrong.row))):
            row, other = int(wrong.row[place]), int(wrong.other[place])
            label, nearest = int(self._label[row]), self._found.nearest[row]
            entries.append(
                Entry(
                    f"labelled {self._name(label)}, sits in {self._name(other)}",
                    f"score {_fixed(wrong.score[place])}; {wrong.votes[place]} of its"
                    f" {len(nearest)} nearest are {self._name(other)};"
                    f" {self._where(row)}",
                    [self._tile(row)]
                    + [
                        self._tile(each, match=bool(self._label[each] == label))
                        for each in nearest[:OF_LABEL].tolist()
                    ],
                )
            )
        return entries

    def near_duplicates(self, listed: int) -> list[Entry]:
        near = self._found.near_duplicates
        entries = []
        for pair, distance, ratio, agree in zip(
            near.pairs[:listed].tolist(), near.distance, near.ratio, near.alike, strict=False
        ):
            one, two = (self._in.embeddings.split[row] for row in pair)
            classes = [self._name(int(self._label[row])) for row in pair]
            what = [
                *(["two classes"] if classes[0] != classes[1] else []),
                *(["two splits"] if one != two else []),
            ]
            entries.append(
                Entry(
                    f"{classes[0]} ({one}) and {classes[1]} ({two})",
                    f"{' and '.join(what)}; distance {distance:.2g}, {ratio:.2f} of the usual"
                    f"{'' if np.isnan(agree) else f'; the pictures correlate by {agree:.2f}'};"
                    f" {' and '.join(self._where(row) for row in pair)}",
                    [self._tile(row) for row in pair],
                )
            )
        return entries

    def _tile(self, row: int, *, match: bool | None = None) -> Tile:
        return Tile(
            self._thumbnails.of(row),
            self._name(int(self._label[row])),
            self._where(row),
            match,
        )

    def _name(self, label: int) -> str:
        return self._in.names[label]

    def _where(self, row: int) -> str:
        of = self._in.embeddings
        return f"{of.source_id[row]} ({of.split[row]})"


def _fixed(value: float) -> str:
    return f"{value:.3f}"


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
