"""Applies a model to the images of a split, each once and in order, on all replicas."""

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
    """Compiles a function of images to run on every replica.

    Args:
      strategy: whose replicas run the function.
      function: images [b, S, S, 3] uint8 -> values [b, ...].

    Returns:
      A function from the replicas' batches to (values, places, mask) of all replicas. A batch is
      (images, places, mask) as `evaluation_batches` gives it.
    """

    def replica(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images, places, mask = batch
        parts = (function(images), tf.cast(places, tf.int32), tf.cast(mask, tf.int32))
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return parts
        return tuple(context.all_gather(tf.identity(part), axis=0) for part in parts)

    @tf.function(autograph=False)
    def run(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        parts = strategy.run(replica, args=batch)
        return tuple(strategy.experimental_local_results(part)[0] for part in parts)

    return run


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """The images of a split, as an evaluation shows them to a model.

    Attributes:
      index: index of the split.
      records: reads the records of the split.
      image_size: side of the square images, in pixels.
      central_share: side of the central square of an image that is used, as a share of its short
        side.
      batch_size: images at a time, over all replicas.
      damaged: what happens to a damaged record, see `Reading`.
      strategy: whose replicas share the images.
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
        progress_name: str,
        rows: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies a function to images, and shows its progress.

        Args:
          forward: result of `compile_on_replicas` for this strategy.
          progress_name: what the progress line and error messages call the work.
          rows: [N] distinct rows of the index; by default all rows.

        Returns:
          Values [M, ...] and their rows [M], in the order of `rows`, without the damaged images.

        Raises:
          UsageError: a record is damaged, and `damaged` does not allow to leave it out.
        """
        dataset = self._all if rows is None else self._batches(rows)
        rows = np.arange(len(self.index)) if rows is None else rows
        values: list[np.ndarray] = []
        places: list[np.ndarray] = []
        with Progress() as progress, iterated(dataset) as batches:
            for batch in batches():
                results, result_places, mask = (tensor.numpy() for tensor in forward(*batch))
                values.append(results[mask > 0])
                places.append(result_places[mask > 0])
                done = sum(map(len, places))
                progress.update(f"{progress_name}: {done:,} of {len(rows):,} images")
        order = np.concatenate(places)
        if len(order) < len(rows) and self.damaged == STOP:
            lost = find_damaged(self.index, np.delete(rows, order))
            raise UsageError(
                f"{progress_name}: {summary(lost, len(rows) - len(order))}; restore it, or set"
                " Reading.damaged = 'replace' to leave out what is damaged"
            )
        return np.concatenate(values), rows[order]

    # Built once, since it takes half a second, and several models and evaluations use it.
    @functools.cached_property
    def _all(self) -> tf.distribute.DistributedDataset:
        return self._batches(np.arange(len(self.index)))

    def _batches(self, rows: np.ndarray) -> tf.distribute.DistributedDataset:
        def host_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
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

        return self.strategy.distribute_datasets_from_function(host_batches)


def forward_function(strategy: tf.distribute.Strategy, model: keras.Model) -> Forward:
    """Compiles a model's forward pass, in inference mode, to run on every replica."""
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
        small = tf.image.resize(tf.cast(batch, tf.float32), [side, side], method="area")
        return tf.cast(tf.round(small), tf.uint8)

    # One device computes this, because TensorFlow's collective operations do not take bytes.
    on_one = dataclasses.replace(images, strategy=tf.distribute.get_strategy())
    return on_one.apply(compile_on_replicas(on_one.strategy, shrink), "pictures", rows)


def embed(
    forward: Forward, images: SplitImages, progress_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds all images of a split.

    Args:
      forward: result of `forward_function` for the images' strategy.
      images: images of a split.
      progress_name: what the progress line and error messages call the work.

    Returns:
      Embeddings [M, D] float32 and their rows [M] of the index, without the damaged images.

    Raises:
      UsageError: an embedding is not finite, or a record is damaged and `images.damaged` does not
        allow to leave it out.
    """
    embeddings, rows = images.apply(forward, progress_name)
    num_bad = np.count_nonzero(~np.isfinite(embeddings).all(axis=1))
    if num_bad:
        raise UsageError(
            f"{progress_name}: {num_bad} of {len(embeddings)} embeddings are not finite, the model"
            " has diverged; lower the learning rate"
        )
    return embeddings, rows
