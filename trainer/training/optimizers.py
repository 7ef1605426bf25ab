"""From gradients to weights: gradients are summed over replicas, clipped, and applied."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from trainer.models.embedding_model import HEAD
from trainer.workarounds import leave_gradients_as_they_are
from tripletmill.errors import UsageError

MakeOptimizer = Callable[[], keras.optimizers.Optimizer]

# Options of Keras that act before the sum over replicas, or that ignore the replicas.
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

    It has to be made in the scope of the model's strategy.

    Args:
      model: a built model.
      make_optimizer: makes the optimizer of all trainable variables, or of all but those of the
        head if the head has its own optimizer.
      make_head_optimizer: makes the optimizer of the layer "head"; None if it has no optimizer of
        its own.
      clip_norm: largest norm of the gradient of all variables together, after the gradients are
        summed over the replicas; None for no limit.
      average_decay: decay of the moving average, 0 to below 1. In step n the decay is at most
        (1 + n) / (10 + n). None keeps no average.

    Attributes:
      averages: moving averages of the trainable variables, in their order; empty without averages.

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
        # Each optimizer with the places of its variables among the trainable variables.
        self._optimizers: list[tuple[keras.optimizers.Optimizer, list[int]]] = []
        head = {id(v) for v in _head_variables(model)} if make_head_optimizer is not None else {}
        for name, make, in_head in (
            ("train.make_optimizer", make_optimizer, False),
            ("train.make_head_optimizer", make_head_optimizer, True),
        ):
            places = [i for i, v in enumerate(self._variables) if (id(v) in head) == in_head]
            if make is not None and places:
                optimizer = _build(name, make, [self._variables[i] for i in places])
                self._optimizers.append((optimizer, places))
        self._averaged = self._variables if average_decay is not None else []
        self.averages = [
            tf.Variable(tf.convert_to_tensor(v.value), trainable=False) for v in self._averaged
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        """Variables of the optimizers, without learning rates: the configuration sets those."""
        return [
            variable
            for optimizer, _ in self._optimizers
            for variable in optimizer.variables
            if variable is not optimizer.learning_rate
        ]

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the next step, by name."""
        names = ("learning_rate", "head_learning_rate")
        return {
            name: float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            for name, (optimizer, _) in zip(names, self._optimizers, strict=False)
        }

    def apply(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Moves the weights by one step. Every replica calls this with its own gradients.

        Args:
          gradients: gradient of the replica's share of the loss, for each trainable variable.

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
        for optimizer, places in self._optimizers:
            optimizer.apply([gradients[i] for i in places], [self._variables[i] for i in places])
        if self._averaged:
            count = tf.cast(self._optimizers[0][0].iterations, tf.float32)
            decay = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
            for average, variable in zip(self.averages, self._averaged, strict=True):
                value = tf.convert_to_tensor(variable.value)
                step = (1.0 - tf.cast(decay, value.dtype)) * (value - average)
                average.assign_add(step)
        return norm

    def start_averages(self) -> None:
        """Sets the averages to the weights as they are now."""
        for average, variable in zip(self.averages, self._averaged, strict=True):
            average.assign(tf.convert_to_tensor(variable.value))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context, the model has the averaged weights, if the run has averages."""
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


def _build(
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
    # They are summed already, since they have to be clipped after the sum.
    leave_gradients_as_they_are(optimizer)
    return optimizer


def _head_variables(model: keras.Model) -> list[keras.Variable]:
    try:
        return model.get_layer(HEAD).trainable_variables
    except ValueError as error:
        raise UsageError(
            f"train.make_head_optimizer: the model has no layer {HEAD!r}"
            " (build_model.embedding_dim = None leaves it out)"
        ) from error


@keras.saving.register_keras_serializable("tripletmill")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly from 0 to its peak, then falls to 0 along half a cosine.

    Args:
      peak: the highest learning rate.
      steps: the step at which the rate is 0 again.
      warmup_steps: the step at which the peak is reached; below `steps`.

    Raises:
      UsageError: `warmup_steps` is out of range.
    """

    def __init__(self, peak: float, steps: int, warmup_steps: int = 0) -> None:
        if not 0 <= warmup_steps < steps:
            raise UsageError(f"WarmupCosine: 0 <= warmup_steps {warmup_steps} < steps {steps}")
        self.peak, self.steps, self.warmup_steps = peak, steps, warmup_steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup_steps, 1)
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        fall = 0.5 * (1.0 + keras.ops.cos(math.pi * keras.ops.clip(progress, 0.0, 1.0)))
        return self.peak * keras.ops.minimum(rise, 1.0) * fall

    def get_config(self) -> dict:
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps}
