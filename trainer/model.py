"""Image -> unit-length embedding."""

import keras

from preprocessing.errors import UsageError
from trainer.backbones import build_backbone

HEAD = "head"


def build_model(
    *,
    backbone: str,
    image_size: int,
    weights: str | None = None,
    embedding_dim: int | None = 128,
    freeze_batch_norm: bool = True,
) -> keras.Model:
    """A backbone, a linear head, and scaling to unit length.

    Args:
      backbone: see `trainer.backbones.build_backbone`.
      image_size: side of the square input, pixels.
      weights: of the backbone: None, "imagenet" or a path.
      embedding_dim: D of the head; None leaves it out, the embedding is the pooled features.
      freeze_batch_norm: whether batch norm keeps the statistics it has.

    Returns:
      A model [batch, image_size, image_size, 3] RGB 0 to 255 -> [batch, D] float32, unit length.
    """
    if embedding_dim is not None and embedding_dim < 1:
        raise UsageError(f"embedding_dim {embedding_dim}: 1 or more, or None for no head")
    trunk = build_backbone(
        backbone, image_size=image_size, weights=weights, freeze_batch_norm=freeze_batch_norm
    )
    image = keras.Input((image_size, image_size, 3), name="image")
    features = trunk(image)
    if embedding_dim is not None:
        features = keras.layers.Dense(embedding_dim, use_bias=False, name=HEAD)(features)
    embedding = keras.layers.UnitNormalization(dtype="float32", name="embedding")(features)
    return keras.Model(image, embedding, name="tripletmill")
