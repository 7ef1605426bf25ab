"""The model that training trains: image -> unit-length embedding."""

from typing import Literal, get_args

import keras

from trainer.models.backbones import build_backbone
from tripletmill.errors import UsageError

HEAD = "head"
# The layer before a whitened head.
UNIT_FEATURES = "unit_features"
DtypePolicy = Literal["float32", "mixed_bfloat16"]


def build_model(
    *,
    backbone: str,
    image_size: int,
    weights: str | None = None,
    embedding_dim: int | None = 128,
    whitened: bool = False,
    freeze_batch_norm: bool = True,
    dtype_policy: DtypePolicy = "float32",
) -> keras.Model:
    """Builds a backbone, a linear head, and scaling to unit length.

    Args:
      backbone: see `trainer.models.backbones.build_backbone`.
      image_size: side of the square input, in pixels.
      weights: weights of the backbone: None for fresh weights, "imagenet", or a path.
      embedding_dim: D, number of outputs of the head. None leaves out the head; the embedding is
        then the backbone's features.
      whitened: whether the head takes features of unit length and has a bias. Training can then set
        the head to whiten the features (see `trainer.models.whitening`), when it starts and for the
        models that it keeps. Until then the head only rotates the features.
      freeze_batch_norm: whether batch norm keeps its statistics; otherwise it computes them over
        the batches of all replicas together.
      dtype_policy: "float32", or "mixed_bfloat16" for a backbone with float32 weights that computes
        in bfloat16. Head and embedding are float32 in both cases.

    Returns:
      A model from RGB pixels 0 to 255 [batch, image_size, image_size, 3] to embeddings of unit
      length [batch, D] float32.

    Raises:
      UsageError: an argument is wrong, or `build_backbone` raises it.
    """
    if embedding_dim is not None and embedding_dim < 1:
        raise UsageError(f"embedding_dim {embedding_dim}: 1 or more, or None for no head")
    if dtype_policy not in get_args(DtypePolicy):
        raise UsageError(
            f"dtype_policy {dtype_policy!r}: one of {', '.join(get_args(DtypePolicy))}"
        )
    policy_before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)
    try:
        trunk = build_backbone(
            backbone, image_size=image_size, weights=weights, freeze_batch_norm=freeze_batch_norm
        )
    finally:
        keras.config.set_dtype_policy(policy_before)
    image = keras.Input((image_size, image_size, 3), name="image")
    features = trunk(image)
    if embedding_dim is not None:
        if whitened:
            if embedding_dim > features.shape[-1]:
                raise UsageError(
                    f"embedding_dim {embedding_dim:,}: a whitened head has at most as many outputs"
                    f" as the {features.shape[-1]:,} features of {backbone}"
                )
            features = keras.layers.UnitNormalization(dtype="float32", name=UNIT_FEATURES)(features)
        features = keras.layers.Dense(
            embedding_dim,
            use_bias=whitened,
            kernel_initializer="orthogonal" if whitened else "glorot_uniform",
            dtype="float32",
            name=HEAD,
        )(features)
    embedding = keras.layers.UnitNormalization(dtype="float32", name="embedding")(features)
    return keras.Model(image, embedding, name="tripletmill")
