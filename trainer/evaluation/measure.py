"""Retrieval metrics of embedded images, and the embedding by raw pixels."""

import dataclasses

import numpy as np
import tensorflow as tf

from trainer.evaluation.inference import SplitImages
from trainer.evaluation.results import RECALL_AT
from trainer.pictures.similarity import SIDE, area_weights
from trainer.retrieval.matches import Gallery, Matches
from trainer.retrieval.metrics import RetrievalMetrics, retrieval_metrics
from tripletmill.formats.index import DatasetIndex


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Images of a split with their embeddings.

    Attributes:
      images: all images of the split.
      embeddings: [M, D] float32.
      rows: [M], rows of the index that the embeddings belong to; damaged images are left out.
    """

    images: SplitImages
    embeddings: np.ndarray
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Labels [M]."""
        return self.images.index.label[self.rows]

    def groups(self, column: str | None) -> list[str | None] | None:
        """Values [M] of a column of the index; None where no column is given."""
        if column is None:
            return None
        return self.images.index.column(column).take(self.rows).to_pylist()


def measure(
    queries: Embedded, gallery: Embedded | None = None, *, group: str | None, progress_name: str
) -> RetrievalMetrics:
    """Retrieval metrics, computed on the devices of the images' strategy; every worker has to call.

    Args:
      queries: images, each of which is a query.
      gallery: images that are searched. None: the queries, where each is left out of its own
        ranking.
      group: column of the index. Rows that have a query's class and its group are left out of its
        ranking. None for no column.
      progress_name: what the progress line calls the work.
    """
    other_split = None
    if gallery is not None:
        other_split = Gallery(gallery.embeddings, gallery.labels, gallery.groups(group))
    return retrieval_metrics(
        queries.embeddings,
        queries.labels,
        groups=queries.groups(group),
        gallery=other_split,
        recall_at=RECALL_AT,
        strategy=queries.images.strategy,
        progress_name=progress_name,
    )


def has_queries(
    queries: DatasetIndex, gallery: DatasetIndex | None = None, *, group: str | None
) -> bool:
    """Whether any image of the queries' split has a match, see `measure`."""
    splits = [
        (index.label, None if group is None else index.column(group).to_pylist())
        for index in ([queries] if gallery is None else [queries, gallery])
    ]
    return bool(Matches(*splits[0], *splits[1:]).num_matches.any())


def raw_pixels(images: tf.Tensor) -> tf.Tensor:
    """Embeds images by their pixels: shrunk to 16 x 16 pixels by area, 0 to 255.

    Args:
      images: [batch, S, S, 3], 0 to 255.

    Returns:
      float32 [batch, 768].
    """
    # Two matrix products, since TensorFlow has no kernel for area resizing on TPUs.
    weights = tf.constant(area_weights(images.shape[1]), tf.float32)
    small = tf.einsum("is,bstc,jt->bijc", weights, tf.cast(images, tf.float32), weights)
    return tf.reshape(small, [-1, SIDE * SIDE * 3])
