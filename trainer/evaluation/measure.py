"""Retrieval metrics of embedded images."""

import dataclasses

import numpy as np
import tensorflow as tf

from trainer.evaluation.inference import SplitImages
from trainer.evaluation.results import RECALL_AT
from trainer.retrieval.matches import Gallery, Matches
from trainer.retrieval.metrics import RetrievalMetrics, retrieval_metrics
from tripletmill.formats.index import DatasetIndex

PIXEL_SIDE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Images with what a model makes of them.

    Attributes:
      images: of a split.
      embeddings: [M, D] float32.
      rows: [M], which images; all but the damaged ones.
    """

    images: SplitImages
    embeddings: np.ndarray
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """[M]."""
        return self.images.index.label[self.rows]

    def groups(self, column: str | None) -> list[str | None] | None:
        """[M] of a column of the index; None without one."""
        if column is None:
            return None
        values = self.images.index.column(column).to_pylist()
        return [values[row] for row in self.rows.tolist()]


def measure(
    queries: Embedded, gallery: Embedded | None = None, *, group: str | None, what: str
) -> RetrievalMetrics:
    """Retrieval on the replicas of the images' strategy; all workers have to ask.

    Args:
      queries: each a query.
      gallery: what is searched; None: the queries, each but the query itself.
      group: column; rows of a query's class and group are left out of its ranking.
      what: the embeddings are, for the progress line.
    """
    searched = None
    if gallery is not None:
        searched = Gallery(gallery.embeddings, gallery.labels, gallery.groups(group))
    return retrieval_metrics(
        queries.embeddings,
        queries.labels,
        groups=queries.groups(group),
        gallery=searched,
        recall_at=RECALL_AT,
        strategy=queries.images.strategy,
        what=what,
    )


def has_queries(
    queries: DatasetIndex, gallery: DatasetIndex | None = None, *, group: str | None
) -> bool:
    """Whether an image of the split has a match, so that it can be found by it."""

    def of(index: DatasetIndex) -> tuple[np.ndarray, list[str | None] | None]:
        return index.label, None if group is None else index.column(group).to_pylist()

    searched = None if gallery is None else of(gallery)
    return bool(Matches(*of(queries), searched).num_matches.any())


def raw_pixels(images: tf.Tensor) -> tf.Tensor:
    """Images [batch, S, S, 3] -> [batch, 768]: shrunk to 16 x 16 by area, compared as they are."""
    # TPUs have no kernel of TensorFlow's for it.
    side = images.shape[1]
    ends = np.arange(side + 1) * PIXEL_SIDE / side
    cells = np.arange(PIXEL_SIDE)[:, None]
    share = np.diff(np.clip(ends, cells, cells + 1))
    shares = tf.constant(share, tf.float32)
    small = tf.einsum("is,bstc,jt->bijc", shares, tf.cast(images, tf.float32), shares)
    return tf.reshape(small, [-1, PIXEL_SIDE * PIXEL_SIDE * 3])
