"""The model that is evaluated and saved as the best, beside the model that is trained."""

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

# The whitened head is fitted to this many images of a class, and to this many images in all.
IMAGES_PER_CLASS, MOST_IMAGES = 64, 8192


class EvalModel:
    """The model that is evaluated, kept as best and exported.

    It has the trained weights at evaluation image size, averaged if train.average_decay is set, and
    a freshly fitted head if build_model.whitened is set.

    Args:
      strategy: the strategy of the models.
      model: the model that is trained.
      eval_size_model: a model with the same weights for images of the size that is evaluated. It
        may be `model` itself.
      optimizers: the optimizers of `model`, which hold its averages.

    Attributes:
      image_size: side of the images that are evaluated, in pixels.
      whitens: whether the head is fitted anew in an evaluation.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        eval_size_model: keras.Model,
        optimizers: Optimizers,
    ) -> None:
        self._strategy, self._model, self._eval_size_model = strategy, model, eval_size_model
        self._optimizers = optimizers
        self.image_size = int(eval_size_model.input_shape[1])
        self._forward = forward_function(strategy, eval_size_model)
        features = features_of(eval_size_model)
        self.whitens = features is not None
        self._to_features = forward_function(strategy, features or eval_size_model)

    def initialize_head(self, images: SplitImages, class_rows: ClassRows) -> None:
        """Fits the head that training begins with if the model has a whitened head.

        Args:
          images: images of the train split.
          class_rows: the rows of each class that the head is fitted to.
        """
        if self.whitens:
            self._whiten(images, class_rows)
            self._optimizers.start_averages()

    def with_training_weights(self) -> Forward:
        """Returns a function that embeds images with the weights that training has reached."""
        self._copy_weights()
        return self._forward

    @contextlib.contextmanager
    def as_evaluated(
        self, images: SplitImages, class_rows: ClassRows, *, whitens: bool
    ) -> Iterator[Forward]:
        """Within the context, both models have the weights that are evaluated and saved.

        Afterwards the trained model has its own weights again.

        Args:
          images: images of the train split.
          class_rows: the rows of each class that the head is fitted to.
          whitens: whether the head is fitted anew; may be set only if `EvalModel.whitens` is.

        Yields:
          A function that embeds images.
        """
        with self._optimizers.averaged(), contextlib.ExitStack() as stack:
            if whitens:
                stack.enter_context(restored_head(self._model))
                self._whiten(images, class_rows)
            yield self.with_training_weights()

    def _whiten(self, images: SplitImages, class_rows: ClassRows) -> None:
        """Fits the head so that it whitens the features of the training images.

        Of too many classes, evenly spaced ones are used.

        Raises:
          UsageError: no class has two different images.
        """
        self._copy_weights()
        rows, classes = class_rows.first_rows(IMAGES_PER_CLASS)
        every = -(-len(rows) // MOST_IMAGES)
        rows = rows[classes % every == 0]
        features, rows_read = images.apply(self._to_features, "whitening", rows)
        head = self._model.get_layer(HEAD)
        kernel, bias = whitening(features, images.index.label[rows_read], int(head.units))
        for variable, value in ((head.kernel, kernel), (head.bias, bias)):
            variable.assign(broadcast_from_chief(self._strategy, value))

    def _copy_weights(self) -> None:
        if self._eval_size_model is not self._model:
            pairs = zip(self._eval_size_model.variables, self._model.variables, strict=True)
            for variable, trained in pairs:
                variable.assign(tf.identity(trained.value))
