"""From gradients to weights: summed over replicas, clipped, applied, averaged over steps."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from trainer.models.embedding_model import HEAD
from tripletmill.errors import UsageError

MakeOptimizer = Callable[[], keras.optimizers.Optimizer]

# Keras's own clip before the sum over replicas, or do not know of it.
_REFUSED = {
    "clipnorm": "set train.clip_norm",
    "global_clipnorm": "set train.clip_norm",
    "clipvalue": "set train.clip_norm",
    "use_ema": "set train.average_decay",
    "gradient_accumulation_steps": "set train.microbatches",
    "loss_scale_factor": "mixed_bfloat16 needs none",
}


class Optimizers:
    """The optimizers of a model, and the moving average of its weights.

    Args:
      model: a built model; this is called in the scope of its strategy.
      make_optimizer: makes that of all trainable variables but the head's, or of all.
      make_head_optimizer: makes that of the layer "head", where it has one of its own.
      clip_norm: largest norm of the gradient of all variables together, after it is summed over
        the replicas; None for any.
      average_decay: of the moving average, 0 to below 1; what it is in step n is at most
        (1 + n) / (10 + n). None keeps no average.

    Raises:
      UsageError: an optimizer cannot be built, or has options that do not work across replicas.
    """

    def __init__(
        self,
        model: keras.Model,
        make_optimizer: MakeOptimizer,
        make_head_optimizer: MakeOptimizer | None = None,
        *,
        clip_norm: float | None = None,
        average_decay: float | None = None,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise UsageError(f"train.clip_norm {clip_norm}: above 0, or None")
        if average_decay is not None and not 0 <= average_decay < 1:
            raise UsageError(f"train.average_decay {average_decay}: 0 to below 1, or None")
        self._variables = model.trainable_variables
        self._clip_norm = clip_norm
        self._decay = average_decay
        self._of: list[tuple[keras.optimizers.Optimizer, list[int]]] = []
        everything = range(len(self._variables))
        head = _head(model) if make_head_optimizer is not None else []
        heads = [i for i in everything if any(self._variables[i] is v for v in head)]
        rest = [i for i in everything if i not in heads]
        for name, make, places in (
            ("train.make_optimizer", make_optimizer, rest),
            ("train.make_head_optimizer", make_head_optimizer, heads),
        ):
            if make is not None and places:
                optimizer = _built(name, make, [self._variables[i] for i in places])
                self._of.append((optimizer, places))
        self._averaged = self._variables if average_decay is not None else []
        self.averages = [
            tf.Variable(tf.convert_to_tensor(v.value), trainable=False) for v in self._averaged
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        """Of the optimizers, but for learning rates, which are of the configuration."""
        return [
            variable
            for optimizer, _ in self._of
            for variable in optimizer.variables
            if variable is not optimizer.learning_rate
        ]

    @property
    def learning_rates(self) -> dict[str, float]:
        """Of the next step, by name."""
        names = ("learning_rate", "head_learning_rate")
        return {
            name: float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            for name, (optimizer, _) in zip(names, self._of, strict=False)
        }

    def apply(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Moves the weights by one step; called on every replica, with its own gradients.

        Args:
          gradients: of the replica's share of the loss, for each trainable variable.

        Returns:
          Scalar, the norm of the summed gradient before it is clipped.
        """
        context = tf.distribute.get_replica_context()
        gradients = list(gradients)
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        for optimizer, places in self._of:
            optimizer.apply([gradients[i] for i in places], [self._variables[i] for i in places])
        if self._averaged:
            count = tf.cast(self._of[0][0].iterations, tf.float32)
            decay = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
            for average, variable in zip(self.averages, self._averaged, strict=True):
                value = tf.convert_to_tensor(variable.value)
                step = (1.0 - tf.cast(decay, value.dtype)) * (value - average)
                average.assign_add(step)
        return norm

    def start_averages(self) -> None:
        """Begins them again with the weights as they are."""
        for average, variable in zip(self.averages, self._averaged, strict=True):
            average.assign(tf.convert_to_tensor(variable.value))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights within; the same as ever without an average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, variable in zip(self.averages, self._averaged, strict=True):
            value = tf.identity(variable.value)
            variable.assign(tf.identity(average))
            average.assign(value)


def _built(
    name: str, make: MakeOptimizer, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer:
    try:
        optimizer = make()
        for option, instead in _REFUSED.items():
            if getattr(optimizer, option):
                raise UsageError(f"{name}: {option} does not work across replicas; {instead}")
        optimizer.build(variables)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{name}: {error}") from error
    # They come summed already; a clipped sum cannot be made of clipped parts.
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
    return optimizer


def _head(model: keras.Model) -> list[keras.Variable]:
    try:
        return model.get_layer(HEAD).trainable_variables
    except ValueError as error:
        raise UsageError(
            f"train.make_head_optimizer: the model has no layer {HEAD!r}"
            " (build_model.embedding_dim = None leaves it out)"
        ) from error


@keras.saving.register_keras_serializable("tripletmill")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a line from 0 to the peak, then falls to 0 along half a cosine.

    Args:
      peak: highest learning rate.
      steps: step at which it is 0 again.
      warmup_steps: step at which the peak is reached.
    """

    def __init__(self, peak: float, steps: int, warmup_steps: int = 0) -> None:
        if not 0 <= warmup_steps < steps:
            raise UsageError(f"WarmupCosine: 0 <= warmup_steps {warmup_steps} < steps {steps}")
        self.peak, self.steps, self.warmup_steps = peak, steps, warmup_steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup_steps, 1)
        share = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        fall = 0.5 * (1.0 + keras.ops.cos(math.pi * keras.ops.clip(share, 0.0, 1.0)))
        return (
            self.peak * keras.ops.minimum(rise, 1.0) * fall
            if self.warmup_steps
            else (self.peak * fall)
        )

    def get_config(self) -> dict:
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps}
