"""A small convolutional network to train from scratch on characters and pictures of 28 to 64 px.

Each image is normalised by itself (one group over height, width and channels), never by the batch.
So the result of a training step does not depend on how the batch is split over replicas. Among the
normalisations of single images this one was the cheapest on a CPU, and it trained no worse than
eight groups, layer normalisation over the channels, or no normalisation.
"""

import keras

MIN_IMAGE_SIZE = 16
_WIDTHS = (32, 128, 128, 256)


def small_conv(image_size: int) -> keras.Model:
    """Builds the network with fresh weights: four blocks, each halving height and width.

    Args:
      image_size: height and width of the images in pixels, at least 16.

    Returns:
      A model from RGB pixels 0..255 [batch, image_size, image_size, 3] to the features of all
      positions [batch, 256 * (image_size // 16)^2], each 0 or more.
    """
    # Pixels are scaled in the variables' type, since bfloat16 would round them.
    dtype = keras.config.dtype_policy().variable_dtype
    image = keras.Input((image_size, image_size, 3), dtype=dtype, name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype=dtype, name="scale")(image)
    for block, width in enumerate(_WIDTHS):
        x = keras.layers.Conv2D(
            width,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"block{block}_conv",
        )(x)
        # Pooling comes first: the other layers then cost a quarter, and training is as good.
        x = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        x = keras.layers.GroupNormalization(groups=1, name=f"block{block}_norm")(x)
        x = keras.layers.ReLU(name=f"block{block}_relu")(x)
    # The position of a stroke distinguishes characters; a mean over the positions would lose it.
    x = keras.layers.Flatten(name="features")(x)
    return keras.Model(image, x, name="small_conv")
