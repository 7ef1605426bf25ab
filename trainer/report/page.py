"""Renders the page: its template, the table of metrics, and the charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup

from trainer.evaluation.results import COLUMNS, TRAINED
from trainer.pictures.thumbnails import Thumbnails
from trainer.report.analysis import DEEPEST, NEIGHBOURS, Analysis
from trainer.report.charts import Line, histogram, line_chart
from trainer.report.entries import Entries, fixed
from trainer.report.findings import PairDistances
from trainer.report.inputs import Inputs
from trainer.retrieval.confidence import confidence_intervals
from trainer.retrieval.metrics import MAP_AT_R, recall_name

BINS = 60
# If the evaluation's MAP@R differs by more than this, it is of other embeddings. Embedding the same
# images again changes it by less.
TOLERANCE = 0.001
_Cell = tuple[float | None, Sequence[float] | None]


def render(inputs: Inputs, analysis: Analysis, thumbnails: Thumbnails, *, listed: int) -> str:
    """Renders the report as HTML.

    Args:
      inputs: what the report was made from.
      analysis: the numbers that were computed.
      thumbnails: the pictures.
      listed: largest number of wrong labels, and of near-duplicates, that the page shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fixed"] = fixed
    environment.filters["grouped"] = "{:,}".format
    entries = Entries(inputs, analysis, thumbnails)
    worst, best = entries.worst_and_best_classes()
    pair_distances = {"same class": analysis.positives, "other classes": analysis.negatives}
    matched = analysis.metrics.queries.tolist()
    return environment.get_template("page.html.jinja").render(
        inputs=inputs,
        info=inputs.info,
        metrics=analysis.metrics,
        analysis=analysis,
        neighbours=NEIGHBOURS,
        metric_names=COLUMNS,
        table=_table(inputs, analysis),
        stale=_stale(inputs, analysis),
        recall=_recall_chart(analysis),
        pair_distances=pair_distances,
        distances=_distance_chart(pair_distances),
        curves=_training_charts(inputs),
        wrong=entries.wrong_labels(listed),
        duplicates=entries.near_duplicates(listed),
        confusions=entries.confusions(),
        num_confused=sum(len(each.examples) for each in analysis.confusions),
        num_unseen=sum(not analysis.neighbours[query] for query in matched),
        worst=worst,
        best=best,
        failed=entries.failed_queries(),
        random=entries.random_queries(),
        missing=thumbnails.missing,
    )


def _table(inputs: Inputs, analysis: Analysis) -> dict[str, dict[str, _Cell]]:
    """Name of what embedded the images -> name of a metric -> its value and its 95 % interval.

    The trained model's values are of the embeddings. The others are the evaluation's.
    """
    results: dict[str, Mapping[str, float]] = {TRAINED: analysis.metrics.mean}
    known = confidence_intervals(analysis.metrics).items()
    intervals = {TRAINED: {name: ends for name, ends in known if not math.isnan(ends[0])}}
    if inputs.evaluation is not None and not inputs.rules_differ:
        evaluated = inputs.evaluation["results"]
        results |= {model: evaluated[model] for model in reversed(evaluated) if model != TRAINED}
        intervals = {**inputs.evaluation.get("intervals", {}), **intervals}
    return {
        model: {
            name: (values.get(name), (intervals.get(model) or {}).get(name)) for name in COLUMNS
        }
        for model, values in results.items()
    }


def _stale(inputs: Inputs, analysis: Analysis) -> float | None:
    """The evaluation's MAP@R of the trained model, if it is not that of the embeddings."""
    if inputs.evaluation is None or inputs.rules_differ:
        return None
    value: float | None = inputs.evaluation["results"].get(TRAINED, {}).get(MAP_AT_R)
    is_stale = value is not None and abs(value - analysis.metrics.map_at_r) > TOLERANCE
    return value if is_stale else None


def _recall_chart(analysis: Analysis) -> Markup:
    k = range(1, DEEPEST + 1)
    recall = [analysis.metrics.mean[recall_name(each)] for each in k]
    low = math.floor(min(recall) * 10) / 10
    line = Line(TRAINED, [*k], recall)
    return line_chart([line], x_label="K", y_label="Recall@K", y_range=(min(low, 0.9), 1.0))


def _distance_chart(pair_distances: dict[str, PairDistances]) -> Markup:
    stop = max(float(each.distance.max(initial=0)) for each in pair_distances.values())
    lines = [
        histogram(name, each.distance, stop=stop or 1.0, bins=BINS)
        for name, each in pair_distances.items()
    ]
    return line_chart(lines, x_label="squared distance", y_label="share of pairs")


def _training_charts(inputs: Inputs) -> dict[str, Markup]:
    """Title -> chart. Charts without values are left out."""

    def line(kind: str, metric: str, name: str) -> Line:
        of_kind = [row for row in inputs.history if row.get("kind") == kind]
        rows = [row for row in of_kind if row.get(metric) is not None]
        return Line(name, [row["step"] for row in rows], [row[metric] for row in rows])

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
