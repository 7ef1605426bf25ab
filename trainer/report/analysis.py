"""Computes all numbers of a report."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from trainer.pictures.similarity import alike
from trainer.pictures.source_images import SourceImages
from trainer.report import findings
from trainer.report.inputs import Inputs
from trainer.retrieval.matches import Gallery, Matches
from trainer.retrieval.metrics import RetrievalMetrics, retrieval_metrics
from trainer.retrieval.neighbours import nearest_neighbours
from tripletmill.errors import UsageError

DEEPEST = 100  # largest K of the recall curve
NEIGHBOURS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The numbers of a report. Rows are rows of all embeddings, unless stated otherwise.

    Attributes:
      metrics: metrics of the queries. Its row numbers are places in `Inputs.queries`.
      positives: distances of queries to images of their own class.
      negatives: distances of queries to images of other classes.
      neighbours: for each query, rows of its nearest images in its ranking, nearest first.
      confusions: pairs of confused classes, most frequent first, of the queries with a match.
      wrong_labels: likely wrong labels in all splits.
      near_duplicates: near-duplicates in all splits.
      nearest: integers [N, k], rows of each image's nearest other images in all splits.
    """

    metrics: RetrievalMetrics
    positives: findings.PairDistances
    negatives: findings.PairDistances
    neighbours: Sequence[Sequence[int]]
    confusions: Sequence[findings.Confusion]
    wrong_labels: findings.WrongLabels
    near_duplicates: findings.NearDuplicates
    nearest: np.ndarray


def analyse(inputs: Inputs, pictures: SourceImages | None = None) -> Analysis:
    """Computes the numbers of a report, which takes TensorFlow.

    Without `pictures`, near-duplicates are found by their embeddings alone.

    Raises:
      UsageError: no query has a match.
    """
    every = inputs.embeddings
    embedding, label = every.embedding, every.label
    queries = _rows_of(inputs, inputs.queries)
    gallery = None if inputs.gallery is None else _rows_of(inputs, inputs.gallery)
    metrics = retrieval_metrics(
        queries.embeddings,
        queries.labels,
        groups=queries.groups,
        gallery=gallery,
        recall_at=range(1, DEEPEST + 1),
        progress_name=f"metrics of {inputs.split}",
    )
    if not metrics.num_queries:
        raise UsageError(
            f"embeddings {every.info.directory}: no image of {inputs.split} has a match in"
            f" {inputs.searched or inputs.split}; choose another --split"
        )
    ranked = nearest_neighbours(
        queries.embeddings,
        NEIGHBOURS,
        gallery=None if gallery is None else gallery.embeddings,
        matches=Matches(
            queries.labels,
            queries.groups,
            None if gallery is None else (gallery.labels, gallery.groups),
        ),
        progress_name=f"neighbours in {inputs.searched or inputs.split}",
    )
    searched = inputs.queries if inputs.gallery is None else inputs.gallery
    neighbours = [searched[rows[rows >= 0]].tolist() for rows in ranked.rows]
    positives, negatives = findings.pair_distances(
        queries.embeddings,
        queries.labels,
        None if gallery is None else (gallery.embeddings, gallery.labels),
    )
    matched = metrics.queries.tolist()  # places of the queries that have a match
    around = nearest_neighbours(embedding, NEIGHBOURS, progress_name="neighbours in all splits")
    return Analysis(
        metrics=metrics,
        positives=positives,
        negatives=negatives,
        neighbours=neighbours,
        confusions=findings.confusions(
            label, inputs.queries[matched].tolist(), [neighbours[place] for place in matched]
        ),
        wrong_labels=findings.wrong_labels(embedding, label, around.rows),
        near_duplicates=findings.near_duplicates(
            label,
            every.split,
            around.rows,
            around.distances,
            alike=None if pictures is None else functools.partial(alike, every, pictures),
        ),
        nearest=around.rows,
    )


def _rows_of(inputs: Inputs, rows: np.ndarray) -> Gallery:
    embeddings, group = inputs.embeddings, inputs.group
    groups = None if group is None else group[rows]
    return Gallery(embeddings.embedding[rows], embeddings.label[rows], groups)
