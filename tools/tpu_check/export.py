"""Writes the HLO of one replica's training step.

Runs under TensorFlow, with a new process for each case.

python -m tools.tpu_check.export CASE OUT
"""

import sys
from pathlib import Path
from types import SimpleNamespace

from tools.tpu_check.cases import Case
from tripletmill.cli.notices import import_tensorflow
from tripletmill.errors import UsageError

import_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from trainer.models.embedding_model import build_model  # noqa: E402
from tripletmill.losses.triplet import hard_triplets, semihard_triplets  # noqa: E402

_TRIPLETS = {"semihard": semihard_triplets, "hard": hard_triplets}


class LoneReplica(tf.distribute.ReplicaContext):
    """One of several TPU replicas. The rows of the other replicas are arguments of the function.

    Only the collectives are replaced. The code of global_batch around them is compiled.
    """

    def __init__(self, replica: int | tf.Tensor, replicas: int) -> None:
        extended = SimpleNamespace(
            worker_devices=("/device:TPU:0",),
            _retrace_functions_for_each_device=False,
            _get_local_replica_id=lambda _: 0,
        )
        strategy = SimpleNamespace(extended=extended, num_replicas_in_sync=replicas)
        super().__init__(strategy, replica)
        self._replicas = replicas

    @property
    def num_replicas_in_sync(self) -> int:
        return self._replicas

    def all_gather(self, value: tf.Tensor, axis: int, options: object = None) -> tf.Tensor:
        """Gathers [b, ...] of each replica to [B, ...], the way TPUStrategy does it.

        Each replica puts its rows into a tensor of zeros; the sum over the replicas holds all rows.
        """
        assert axis == 0
        mask = tf.one_hot(self.replica_id_in_sync_group, self._replicas, dtype=value.dtype)
        padded = tf.reshape(mask, [-1, *[1] * value.shape.rank]) * value[None]
        summed = self.all_reduce(tf.distribute.ReduceOp.SUM, padded)
        return tf.reshape(summed, [self._replicas * value.shape[0], *value.shape[1:]])

    def all_reduce(
        self, reduce_op: tf.distribute.ReduceOp, value: tf.Tensor, options: object = None
    ) -> tf.Tensor:
        """Returns this replica's value plus the sum of the others', which has the same shape."""
        # A tensor of init_scope becomes an argument, whose value the compiler does not know.
        with tf.init_scope():
            others = tf.zeros(value.shape, value.dtype)
        return value + others


def step_hlo(case: Case) -> bytes:
    """Returns the serialized HLO of a step: embedding, loss, gradients and an AdamW update.

    Raises:
      UsageError: the backbone does not exist or does not accept the image size.
    """
    tf.config.experimental.enable_tensor_float_32_execution(case.matmul == "default")
    if case.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(
        backbone=case.backbone, image_size=case.image_size, embedding_dim=case.embedding_dim
    )
    optimizer = keras.optimizers.AdamW(1e-3)
    optimizer.build(model.trainable_variables)
    triplets = _TRIPLETS[case.loss]

    @tf.function(jit_compile=True)
    def step(images: tf.Tensor, labels: tf.Tensor, replica: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            embeddings = model(images, training=True)
            with LoneReplica(replica, case.replicas):
                loss = triplets(labels, embeddings).loss
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    hlo = step.experimental_get_compiler_ir(
        tf.TensorSpec([case.batch, case.image_size, case.image_size, 3], tf.uint8),
        tf.TensorSpec([case.batch], tf.int32),
        tf.TensorSpec([], tf.int32),
    )
    return hlo(stage="hlo_serialized")


def main() -> None:
    try:
        Path(sys.argv[2]).write_bytes(step_hlo(Case.from_json(sys.argv[1])))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
