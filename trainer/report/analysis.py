"""All numbers of a report, of what it was given."""

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

DEEPEST = 100  # K of the recall curve
NEIGHBOURS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """What was found. Rows are rows of all embeddings.

    Attributes:
      metrics: of the queries; their row numbers are places among `Inputs.queries`.
      positives: distances of queries to images of their class.
      negatives: and to those of others.
      neighbours: for each query, rows of the nearest images that count, nearest first.
      neighbour_distances: to them.
      confusions: most frequent first; examples are pairs of rows.
      wrong_labels: in all splits.
      near_duplicates: in all splits.
      nearest: [N, k], rows of the nearest of all others in all splits.
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
    """Computes it all; needs TensorFlow. Without pictures, near-duplicates go by embeddings alone.

    Raises:
      UsageError: no query has a match.
    """
    every = inputs.embeddings
    queries = inputs.queries
    searched = queries if inputs.gallery is None else inputs.gallery
    embedding, label = every.embedding, every.label
    group = inputs.group
    gallery = None
    if inputs.gallery is not None:
        gallery = Gallery(
            embedding[searched], label[searched], None if group is None else group[searched]
        )
    metrics = retrieval_metrics(
        embedding[queries],
        label[queries],
        groups=None if group is None else group[queries],
        gallery=gallery,
        recall_at=range(1, DEEPEST + 1),
        progress_name=f"metrics of {inputs.split}",
    )
    if not metrics.num_queries:
        raise UsageError(
            f"embeddings {every.info.directory}: no image of {inputs.split} has a match in"
            f" {inputs.searched or inputs.split}; choose another --split"
        )
    found = nearest_neighbours(
        embedding[queries],
        NEIGHBOURS,
        gallery=None if gallery is None else gallery.embeddings,
        matches=Matches(
            label[queries],
            None if group is None else group[queries],
            None if gallery is None else (gallery.labels, gallery.groups),
        ),
        progress_name=f"neighbours in {inputs.searched or inputs.split}",
    )
    counted = [searched[rows[rows >= 0]].tolist() for rows in found.rows]
    with_match = np.zeros(len(queries), bool)
    with_match[metrics.queries] = True
    confused = findings.confusions(
        label[queries],
        label,
        [rows if known else [] for rows, known in zip(counted, with_match, strict=True)],
    )
    positives, negatives = findings.pair_distances(
        embedding[queries],
        label[queries],
        None if gallery is None else gallery.embeddings,
        None if gallery is None else gallery.labels,
    )
    around = nearest_neighbours(embedding, NEIGHBOURS, progress_name="neighbours in all splits")
    return Analysis(
        metrics=metrics,
        positives=positives,
        negatives=negatives,
        neighbours=counted,
        confusions=[
            dataclasses.replace(
                each, examples=[(int(queries[query]), row) for query, row in each.examples]
            )
            for each in confused
        ],
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
