"""Draws random augmentations with numpy, as arrays that `image_ops.pixels` applies in TensorFlow.

drawn = Augmentation(min_area=0.3).draw(seed, step, slots, height, width, image_size)
images = pixels(jpegs, {name: tf.constant(values) for name, values in drawn.items()}, image_size)
"""

import dataclasses

import numpy as np

from trainer.data.stateless_random import key, uniform
from tripletmill.errors import UsageError

MIN_ERASED_AREA, MAX_ERASED_ASPECT = 0.02, 3.3
MID_GREY = 127.5
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
# Streams of random numbers; the batch plan uses 0 to 3.
_AUGMENTATION, _CLASSES = 4, 5


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random crops and changes of training images, as a function of seed, step and slot.

    A slot is the position of an image in the global batch.

    Attributes:
      min_area: smallest share of the image's area that a crop covers, above 0 to 1.
      max_area: largest share of the image's area that a crop covers, min_area to 1.
      max_aspect: largest ratio of a crop's longer side to its shorter side, 1 or more.
      flip: whether half of the crops are mirrored left to right.
      rotate: largest angle, in degrees, by which crops are rotated about their centre, either way,
        0 to 180. Corners that would be empty repeat the nearest pixel.
      shear: largest angle, in degrees, by which crops are sheared, either way, 0 to 45.
      class_turns: whether each class of a batch is rotated as a whole: all its images by the same
        angle of 0, 90, 180 or 270 degrees, which is drawn at each appearance of the class. A
        character that lies on its side counts as another character, so there are four times as many
        classes to learn from (Santoro et al.: Meta-Learning with Memory-Augmented Neural Networks,
        2016). A class never meets its own rotated copy in a batch, so symmetrical characters do no
        harm.
      class_mirrors: whether each class of a batch is mirrored as a whole with probability 1/2.
      brightness: largest change b of brightness, 0 to 1: values are multiplied by 1 - b to 1 + b.
      contrast: largest change c of contrast, 0 to 1: the distance of values to mid-grey is
        multiplied by 1 - c to 1 + c.
      saturation: largest change s of saturation, 0 to 1: the distance of a pixel to its own grey is
        multiplied by 1 - s to 1 + s.
      hue: largest rotation of the hue, either way, as a share of the colour circle, 0 to 0.5.
      erase: share of the crops in which a rectangle is filled with one random colour, 0 to 1
        (Zhong et al.: Random Erasing Data Augmentation, 2020).
      erase_max_area: largest share of a crop that is erased, 0.02 to 1.
    """

    min_area: float = 0.5
    max_area: float = 1.0
    max_aspect: float = 4 / 3
    flip: bool = True
    rotate: float = 0.0
    shear: float = 0.0
    class_turns: bool = False
    class_mirrors: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase: float = 0.0
    erase_max_area: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise UsageError(
                "Augmentation: 0 < min_area <= max_area <= 1, not"
                f" {self.min_area} and {self.max_area}"
            )
        if not 1 <= self.max_aspect < np.inf:
            raise UsageError(f"Augmentation.max_aspect: 1 or more, not {self.max_aspect}")
        for name, least, most in (
            ("rotate", 0, 180),
            ("shear", 0, 45),
            ("brightness", 0, 1),
            ("contrast", 0, 1),
            ("saturation", 0, 1),
            ("hue", 0, 0.5),
            ("erase", 0, 1),
            ("erase_max_area", MIN_ERASED_AREA, 1),
        ):
            if not least <= getattr(self, name) <= most:
                raise UsageError(
                    f"Augmentation.{name}: {least} to {most}, not {getattr(self, name)}"
                )

    @property
    def _colours(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation or self.hue)

    def draw(
        self,
        seed: int,
        step: int,
        slots: np.ndarray,
        height: np.ndarray,
        width: np.ndarray,
        image_size: int,
        classes: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Draws the augmentations for the images of a step.

        Args:
          seed: any integer.
          step: the training step.
          slots: [N] positions in the global batch.
          height: [..., N] heights of the stored images in pixels. Further axes hold several
            candidates for each slot; all candidates of a slot get the same random numbers.
          width: [..., N] widths of the stored images in pixels.
          image_size: side of the square that crops are resized to, in pixels.
          classes: [N] position of each image's class in the global batch; needed for class_turns
            and class_mirrors.

        Returns:
          The arguments of `pixels` by name. "window" [..., N, 4] int32 is top, left, height and
          width of the crop. The others are there if the settings ask for them: "flip" [N] bool;
          "affine" [N, 8] float32, which maps pixels of the result to pixels of the crop, as
          TensorFlow's projective transforms do; "colour" [N, 3, 4] float32, a matrix that is
          applied to R, G, B and 1; "erased" [N, 7] int32, a window of the result, which may be
          empty, and a colour.

        Raises:
          ValueError: class_turns or class_mirrors is set, and `classes` is None.
        """
        numbers = uniform(key(seed, _AUGMENTATION, step, slots), 19).T
        drawn = {"window": self._windows(numbers[:4], height, width)}
        if self.flip:
            drawn["flip"] = numbers[4] < 0.5
        if self.rotate or self.shear or self.class_turns or self.class_mirrors:
            turns, signs = self._class_symmetries(seed, step, slots, classes)
            drawn["affine"] = self._affine(turns, signs, numbers[17], numbers[18], image_size)
        if self._colours:
            drawn["colour"] = self._colour_matrices(*numbers[5:9])
        if self.erase:
            drawn["erased"] = self._erased(numbers[9:17], image_size)
        return drawn

    def _windows(self, numbers: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Crops, [..., N, 4]: top, left, height, width in pixels of the stored image."""
        area = (self.min_area + (self.max_area - self.min_area) * numbers[0]) * height * width
        aspect = self.max_aspect ** (2 * numbers[1] - 1)
        crop_height = np.clip(np.rint(np.sqrt(area / aspect)), 1, height)
        crop_width = np.clip(np.rint(np.sqrt(area * aspect)), 1, width)
        top = np.floor(numbers[2] * (height - crop_height + 1))
        left = np.floor(numbers[3] * (width - crop_width + 1))
        return np.stack([top, left, crop_height, crop_width], axis=-1).astype(np.int32)

    def _class_symmetries(
        self, seed: int, step: int, slots: np.ndarray, classes: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Quarter turns of each image, [N], 0 to 3, and the sign of its x axis, [N], 1 or -1."""
        turns, signs = np.zeros(len(slots)), np.ones(len(slots))
        if self.class_turns or self.class_mirrors:
            if classes is None:
                raise ValueError("class_turns and class_mirrors: classes are needed")
            numbers = uniform(key(seed, _CLASSES, step, classes), 2).T
            if self.class_turns:
                turns = np.floor(4 * numbers[0])
            if self.class_mirrors:
                signs = np.where(numbers[1] < 0.5, -1.0, 1.0)
        return turns, signs

    def _affine(
        self,
        turns: np.ndarray,
        signs: np.ndarray,
        rotate: np.ndarray,
        shear: np.ndarray,
        size: int,
    ) -> np.ndarray:
        """Affine maps about the centre, [N, 8]: a0 to a5 row by row, x before y, and two zeros."""
        angle = np.pi / 2 * turns + np.deg2rad(self.rotate) * (2 * rotate - 1)
        slant = np.tan(np.deg2rad(self.shear) * (2 * shear - 1))
        cos, sin, centre = np.cos(angle), np.sin(angle), (size - 1) / 2
        linear = np.stack([[cos, cos * slant - sin], [sin, sin * slant + cos]])  # [2, 2, N]
        linear[0] *= signs  # x of the crop: a class is mirrored before its images are rotated
        offset = centre - linear.sum(axis=1) * centre
        rows = [*linear[0], offset[0], *linear[1], offset[1], 0 * angle, 0 * angle]
        return np.stack(rows, axis=1).astype(np.float32)

    def _colour_matrices(
        self, brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray
    ) -> np.ndarray:
        """One matrix for all four changes, [N, 3, 4]; each of them is affine in RGB."""

        def factor(share: float, number: np.ndarray) -> np.ndarray:
            return (1 + share * (2 * number - 1))[:, None, None]

        grey = np.tile(_LUMA, (3, 1))
        saturate = grey + factor(self.saturation, saturation) * (np.eye(3) - grey)
        angle = 2 * np.pi * self.hue * (2 * hue - 1)
        turn = np.tile(np.eye(3), (len(angle), 1, 1))
        turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
        turn[:, 2, 1] = np.sin(angle)
        turn[:, 1, 2] = -turn[:, 2, 1]
        stretch = factor(self.contrast, contrast)
        linear = stretch * (np.linalg.inv(_YIQ) @ turn @ _YIQ @ saturate)
        offset = np.broadcast_to((1 - stretch) * MID_GREY, (len(angle), 3, 1))
        scale = factor(self.brightness, brightness)
        return (scale * np.concatenate([linear, offset], axis=2)).astype(np.float32)

    def _erased(self, numbers: np.ndarray, size: int) -> np.ndarray:
        """Windows to erase and their colours, [N, 7]; a window of height 0 erases nothing."""
        area = MIN_ERASED_AREA + (self.erase_max_area - MIN_ERASED_AREA) * numbers[1]
        aspect = MAX_ERASED_ASPECT ** (2 * numbers[2] - 1)
        height, width = (
            np.clip(np.rint(size * np.sqrt(share)), 1, size)
            for share in (area / aspect, area * aspect)
        )
        height = np.where(numbers[0] < self.erase, height, 0)
        top = np.floor(numbers[3] * (size - height + 1))
        left = np.floor(numbers[4] * (size - width + 1))
        colour = np.floor(256 * numbers[5:8])
        return np.stack([top, left, height, width, *colour], axis=1).astype(np.int32)
