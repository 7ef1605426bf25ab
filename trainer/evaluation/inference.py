"""The images of a split as evaluation sees them: each once, in order, shared by all replicas."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer.data.damaged_records import STOP, find_damaged, summary
from trainer.data.input_pipeline import evaluation_batches, iterated
from trainer.data.reading import Records
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex

Forward = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def compile_on_replicas(
    strategy: tf.distribute.Strategy, function: Callable[[tf.Tensor], tf.Tensor]
) -> Forward:
    """A function of images [b, S, S, 3], compiled to run on every replica.

    Returns:
      A function (images, places, mask) of the replicas' batches -> (values, places, mask) of all.
    """

    def replica(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images, places, mask = batch
        own = (function(images), tf.cast(places, tf.int32), tf.cast(mask, tf.int32))
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return own
        return tuple(context.all_gather(tf.identity(part), axis=0) for part in own)

    @tf.function(autograph=False)
    def run(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        parts = strategy.run(replica, args=batch)
        return tuple(strategy.experimental_local_results(part)[0] for part in parts)

    return run


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """Images of a split.

    Attributes:
      index: the split.
      records: where its records are read.
      image_size: side of the square images, pixels.
      central_share: side of the central square that is kept, as a share of the short side.
      batch_size: images at a time, over all replicas.
      damaged: what to do about a damaged record, see `Reading`.
      strategy: whose replicas share the work.
    """

    index: DatasetIndex
    records: Records
    image_size: int
    central_share: float
    batch_size: int
    damaged: str = STOP
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)

    def apply(
        self,
        forward: Forward,
        what: str,
        rows: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies a function to images, showing progress.

        Args:
          forward: of `compile_on_replicas`, for this strategy.
          what: it is, for the progress line.
          rows: [N] of the index; all by default.

        Returns:
          Values [M, ...] and their rows [M] in the order of `rows`, all but the damaged ones.

        Raises:
          UsageError: a record is damaged, unless `damaged` says that it is to be left out.
        """
        dataset = self._all if rows is None else self._batches(rows)
        rows = np.arange(len(self.index)) if rows is None else rows
        values: list[np.ndarray] = []
        places: list[np.ndarray] = []
        with Progress() as progress, iterated(dataset) as batches:
            for batch in batches():
                result, of, mask = (tensor.numpy() for tensor in forward(*batch))
                values.append(result[mask > 0])
                places.append(of[mask > 0])
                done = sum(map(len, places))
                progress.update(f"{what}: {done:,} of {len(rows):,} images")
        order = np.concatenate(places)
        if len(order) < len(rows) and self.damaged == STOP:
            lost = find_damaged(self.index, np.delete(rows, order))
            raise UsageError(
                f"{what}: {summary(lost, len(rows) - len(order))}; restore it, or set"
                " Reading.damaged = 'replace' to leave out what is damaged"
            )
        return np.concatenate(values), rows[order]

    # To build it takes half a second, which several models and evaluations would take again.
    @functools.cached_property
    def _all(self) -> tf.distribute.DistributedDataset:
        return self._batches(np.arange(len(self.index)))

    def _batches(self, rows: np.ndarray) -> tf.distribute.DistributedDataset:
        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return evaluation_batches(
                self.index,
                rows,
                self.records,
                image_size=self.image_size,
                central_share=self.central_share,
                batch_size=self.batch_size,
                replicas=context.num_replicas_in_sync // context.num_input_pipelines,
                num_hosts=context.num_input_pipelines,
                host=context.input_pipeline_id,
            )

        return self.strategy.distribute_datasets_from_function(of_host)


def forward_function(strategy: tf.distribute.Strategy, model: keras.Model) -> Forward:
    """A model's forward pass on every replica."""
    return compile_on_replicas(strategy, lambda images: model(images, training=False))


def images_as_evaluated(
    images: SplitImages, rows: np.ndarray, side: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images as an evaluation sees them: cropped and resized to the model's input size.

    Args:
      images: images of a split, S pixels wide.
      rows: [n] distinct rows of the split's index.
      side: images that are larger are shrunk to this width, in pixels; None for S.

    Returns:
      Pixels [m, s, s, 3] uint8, where s is the smaller of S and `side`, and rows [m], in the order
      of the argument. Damaged images are left out.

    Raises:
      UsageError: a record is damaged, unless `images.damaged` allows to leave it out.
    """
    side = images.image_size if side is None else min(side, images.image_size)

    def shrink(batch: tf.Tensor) -> tf.Tensor:
        if side == images.image_size:
            return tf.identity(batch)
        small = tf.image.resize(tf.cast(batch, tf.float32), [side, side], method="area")
        return tf.cast(tf.round(small), tf.uint8)

    # One device computes this, because TensorFlow's collective operations do not take bytes.
    on_one = dataclasses.replace(images, strategy=tf.distribute.get_strategy())
    return on_one.apply(compile_on_replicas(on_one.strategy, shrink), "pictures", rows)


def embed(forward: Forward, images: SplitImages, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [M, D] float32 of images, and their rows [M]; all but the damaged ones.

    Raises:
      UsageError: one is not finite, or a record is damaged.
    """
    embeddings, rows = images.apply(forward, what)
    bad = np.count_nonzero(~np.isfinite(embeddings).all(axis=1))
    if bad:
        raise UsageError(
            f"{what}: {bad} of {len(embeddings)} embeddings are not finite, the model has diverged;"
            " lower the learning rate"
        )
    return embeddings, rows
