"""The gradient of the whole batch's triplet loss, in the memory of a part of the batch.

With microbatches, the batch is first embedded part by part without gradients. Then the loss is
mined and differentiated over the embeddings of all parts. Last, each part is embedded again, now
with the gradient of its own embeddings. The result is the exact gradient of the whole batch's loss,
not a sum of the gradients of the parts' losses (Gao, Zhang, Han, Callan: Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup, 2021).
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tripletmill.losses.triplet import TripletResult

Values = list[tf.Tensor]
# The loss as a function of labels [b] and embeddings [b, D].
TripletLoss = Callable[[tf.Tensor, tf.Tensor], TripletResult]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """The gradients of one replica, and what they were computed from.

    Attributes:
      of_weights: gradient of this replica's share of the loss, for each trainable variable of the
        model.
      embeddings: [b, D], embeddings of this replica's rows.
      result: the loss of this replica.
    """

    of_weights: Values
    embeddings: tf.Tensor
    result: TripletResult


def make_gradients(
    model: keras.Model,
    triplets: TripletLoss,
    *,
    microbatches: int = 1,
    jit_compile: bool = False,
) -> Callable[[tf.Tensor, tf.Tensor], Gradients]:
    """Makes a function that differentiates the loss and moves the model's state by one step.

    The state is what training changes without a gradient. The seeds of random layers advance from
    part to part, and both passes see the same seeds. The moving statistics of live batch norm are
    updated once in a step: each part updates the statistics from before the step, and the step
    takes the mean over the parts.

    Args:
      model: the model, [b, S, S, 3] uint8 -> [b, D].
      triplets: the loss.
      microbatches: M, the number of parts; divides b.
      jit_compile: whether XLA compiles the model's forward and backward pass.

    Returns:
      A function (images [b, S, S, 3], labels [b]) -> Gradients, to be called in a replica context.
    """

    def forward(weights: Values, state: Values, images: tf.Tensor) -> tuple[tf.Tensor, Values]:
        return model.stateless_call(weights, state, images, training=True)

    if jit_compile:
        forward = tf.function(forward, jit_compile=True, autograph=False)

    def whole(images: tf.Tensor, labels: tf.Tensor) -> Gradients:
        weights, state = _values(model.trainable_variables), _values(model.non_trainable_variables)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            embeddings, new_state = forward(weights, state, images)
            result = triplets(labels, embeddings)
        _assign(model.non_trainable_variables, state, new_state)
        return Gradients(_gradient(tape, result.loss, weights), embeddings, result)

    def in_parts(images: tf.Tensor, labels: tf.Tensor) -> Gradients:
        weights, state = _values(model.trainable_variables), _values(model.non_trainable_variables)
        size = images.shape[0] // microbatches
        parts = tf.reshape(images, [microbatches, size, *images.shape[1:]])

        def embed(m: tf.Tensor, seeds: Values, done: tf.TensorArray) -> tuple:
            embeddings, after = forward(weights, _with_seeds(state, seeds), parts[m])
            return m + 1, _seeds(after), done.write(m, embeddings)

        rows = tf.TensorArray(
            model.outputs[0].dtype, microbatches, element_shape=[size, *model.output_shape[1:]]
        )
        *_, rows = _times(microbatches, embed, _seeds(state), rows)
        embeddings = rows.concat()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(embeddings)
            result = triplets(labels, embeddings)
        upstream = tf.reshape(
            _gradient(tape, result.loss, [embeddings])[0], [microbatches, size, -1]
        )

        def differentiate(m: tf.Tensor, seeds: Values, moved: Values, total: Values) -> tuple:
            before = _with_seeds(state, seeds)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                embeddings, after = forward(weights, before, parts[m])
            gradients = _gradient(tape, embeddings, weights, upstream[m])
            steps = [new - old for new, old in zip(_floats(after), _floats(before), strict=True)]
            return m + 1, _seeds(after), _add(moved, steps), _add(total, gradients)

        _, seeds, moved, gradients = _times(
            microbatches, differentiate, _seeds(state), _zeros(_floats(state)), _zeros(weights)
        )
        floats = _add(_floats(state), [step / microbatches for step in moved])
        new_state = _with_seeds(state, seeds, floats)
        _assign(model.non_trainable_variables, state, new_state)
        return Gradients(gradients, embeddings, result)

    return whole if microbatches == 1 else in_parts


def _times(count: int, body: Callable[..., tuple], *start: object) -> tuple:
    """Calls `body` with (number, ...) once after another, so that memory is that of one call."""
    return tf.while_loop(
        lambda m, *_: m < count,
        body,
        (tf.constant(0), *start),
        parallel_iterations=1,
        maximum_iterations=count,
    )


def _values(variables: Sequence[keras.Variable]) -> Values:
    return [tf.convert_to_tensor(variable.value) for variable in variables]


def _assign(variables: Sequence[keras.Variable], old: Values, new: Values) -> None:
    for variable, before, after in zip(variables, old, new, strict=True):
        if after is not before:
            variable.assign(after)


def _seeds(state: Values) -> Values:
    return [value for value in state if value.dtype.is_integer]


def _floats(state: Values) -> Values:
    return [value for value in state if not value.dtype.is_integer]


def _with_seeds(state: Values, seeds: Values, floats: Values | None = None) -> Values:
    """Replaces the seeds in a state, and its floats if they are given."""
    integers, rest = iter(seeds), iter(_floats(state) if floats is None else floats)
    return [next(integers if value.dtype.is_integer else rest) for value in state]


def _zeros(values: Values) -> Values:
    return [tf.zeros_like(value) for value in values]


def _add(left: Values, right: Values) -> Values:
    return [a + b for a, b in zip(left, right, strict=True)]


def _gradient(
    tape: tf.GradientTape, target: tf.Tensor, sources: Values, upstream: tf.Tensor | None = None
) -> Values:
    """Returns dense gradients; zeros for sources that the target does not depend on."""
    gradients = tape.gradient(
        target, sources, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return [tf.convert_to_tensor(gradient) for gradient in gradients]
