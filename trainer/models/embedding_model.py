"""Image -> unit-length embedding."""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import keras

from trainer.models.backbones import build_backbone
from tripletmill.errors import UsageError

HEAD = "head"
UNIT_FEATURES = "unit_features"  # before a whitened head
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
    """A backbone, a linear head, and scaling to unit length.

    Args:
      backbone: see `trainer.models.backbones.build_backbone`.
      image_size: side of the square input, pixels.
      weights: of the backbone: None, "imagenet" or a path.
      embedding_dim: D of the head; None leaves it out, the embedding is the backbone's features.
      whitened: whether the head takes features of unit length and has a bias, so that training can
        make it one that whitens them (`trainer.models.whitening`), for its start and for what it
        keeps; until then it only turns them.
      freeze_batch_norm: whether batch norm keeps the statistics it has; else it is live, over the
        batches of all replicas together.
      dtype_policy: of the backbone, "float32" or "mixed_bfloat16" (weights float32, computed in
        bfloat16); head and embedding are float32 either way.

    Returns:
      A model [batch, image_size, image_size, 3] RGB 0 to 255 -> [batch, D] float32, unit length.
    """
    if embedding_dim is not None and embedding_dim < 1:
        raise UsageError(f"embedding_dim {embedding_dim}: 1 or more, or None for no head")
    if dtype_policy not in get_args(DtypePolicy):
        raise UsageError(
            f"dtype_policy {dtype_policy!r}: one of {', '.join(get_args(DtypePolicy))}"
        )
    with _policy(dtype_policy):
        trunk = build_backbone(
            backbone, image_size=image_size, weights=weights, freeze_batch_norm=freeze_batch_norm
        )
    image = keras.Input((image_size, image_size, 3), name="image")
    features = trunk(image)
    if embedding_dim is not None:
        if whitened:
            if embedding_dim > features.shape[-1]:
                raise UsageError(
                    f"embedding_dim {embedding_dim:,}: a whitened head keeps at most the"
                    f" {features.shape[-1]:,} features of {backbone}"
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


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    """What layers are made with."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
