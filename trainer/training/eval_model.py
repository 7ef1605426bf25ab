"""The model of a run as it is looked at and kept, beside the one that training moves."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.data.class_rows import ClassRows
from trainer.distributed.agreement import broadcast_from_chief
from trainer.evaluation.inference import Forward, SplitImages, forward_function
from trainer.models.embedding_model import HEAD
from trainer.models.whitening import features_of, restored_head, whitening
from trainer.training.optimizers import Optimizers

IMAGES_PER_CLASS, MOST_IMAGES = 64, 8192


class EvalModel:
    """A model in training, as it is evaluated: for whole images, averaged, its head whitened anew.

    Args:
      strategy: of the models.
      model: is trained.
      shown: of the same weights, for images of the size that is evaluated; may be `model`.
      updates: of `model`.

    Attributes:
      image_size: pixels, of `shown`.
      whitens: whether the head of what is kept whitens the features that training has reached.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        shown: keras.Model,
        updates: Optimizers,
    ) -> None:
        self._strategy, self._model, self._shown = strategy, model, shown
        self._updates = updates
        self.image_size = int(shown.input_shape[1])
        self._forward = forward_function(strategy, shown)
        features = features_of(shown)
        self.whitens = features is not None
        self._to_features = forward_function(strategy, features or shown)

    def initialize_head(self, images: SplitImages, class_rows: ClassRows) -> None:
        """Whitens the head that training begins with, if it whitens at all."""
        if self.whitens:
            self._whiten(images, class_rows)
            self._updates.start_averages()

    def with_training_weights(self) -> Forward:
        """Embeds images by the weights as training has them now."""
        self._copy()
        return self._forward

    @contextlib.contextmanager
    def as_evaluated(
        self, images: SplitImages, class_rows: ClassRows, *, whitens: bool
    ) -> Iterator[Forward]:
        """Within, the model is what would be kept; training goes on with its own.

        Args:
          images: of the train split.
          class_rows: the rows of each class that the head is whitened by.
          whitens: whether it is; only where `EvalModel.whitens`.
        """
        with self._updates.averaged(), contextlib.ExitStack() as head:
            if whitens:
                head.enter_context(restored_head(self._model))
                self._whiten(images, class_rows)
            yield self.with_training_weights()

    def _whiten(self, images: SplitImages, class_rows: ClassRows) -> None:
        self._copy()
        whiten_head(self._strategy, self._model, self._to_features, images, class_rows)

    def _copy(self) -> None:
        if self._shown is not self._model:
            pairs = zip(self._shown.variables, self._model.variables, strict=True)
            for variable, trained in pairs:
                variable.assign(tf.identity(trained.value))


def whiten_head(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    forward: Forward,
    images: SplitImages,
    class_rows: ClassRows,
) -> None:
    """Sets a model's head to whiten the features of its training images.

    Args:
      strategy: of the model; every one of its processes has to ask.
      model: with a layer "head", see `build_model(whitened=True)`.
      forward: embeds images by `features_of` the model.
      images: of the train split.
      class_rows: the rows of each class; if there are too many classes, evenly spaced ones are
        used.

    Raises:
      UsageError: no class has two different images.
    """
    rows, classes = class_rows.first_rows(IMAGES_PER_CLASS)
    every = -(-len(rows) // MOST_IMAGES)
    rows = rows[classes % every == 0]
    features, found = images.apply(forward, "whitening", rows)
    head = model.get_layer(HEAD)
    kernel, bias = whitening(features, images.index.label[found], int(head.units))
    for variable, value in ((head.kernel, kernel), (head.bias, bias)):
        variable.assign(broadcast_from_chief(strategy, value))
