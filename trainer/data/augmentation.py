"""What each training image is put through: drawn by numpy, as data, then applied in TensorFlow.

drawn = Augmentation(min_area=0.3).draw(seed, step, slots, height, width, image_size)
pixels(jpeg, {name: tf.constant(values[0]) for name, values in drawn.items()}, image_size)
"""

import dataclasses

import numpy as np

from trainer.data.stateless_random import key, uniform
from tripletmill.errors import UsageError

MIN_ERASED_AREA, MAX_ERASED_ASPECT = 0.02, 3.3
MID_GREY = 127.5
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_AUGMENTATION, _CLASSES = 4, 5  # keep their random numbers apart from those of batches


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training image is drawn: a function of (seed, step, slot in the global batch).

    Attributes:
      min_area: smallest share of the image's area that a crop covers, above 0 to 1.
      max_area: largest share, min_area to 1.
      max_aspect: a crop's longer side over its shorter one is at most this, 1 or more.
      flip: whether half of the crops are mirrored left to right.
      rotate: crops are turned about their centre by up to so many degrees either way, 0 to 180;
        what comes in at the corners repeats the nearest pixel.
      shear: and slanted by up to so many degrees, 0 to 45.
      class_turns: whether each class of a batch is turned as a whole, all its images by the same 0,
        90, 180 or 270 degrees, drawn anew at each visit. A character that lies on its side is
        another one, so there are four times as many classes to learn from (Santoro et al.:
        Meta-Learning with Memory-Augmented Neural Networks, 2016); a class and itself turned never
        meet in a batch, so symmetrical ones do no harm.
      class_mirrors: whether half of the classes of a batch are mirrored as a whole, likewise.
      brightness: all values times 1 - brightness to 1 + brightness, 0 to 1.
      contrast: the distance to mid-grey, likewise.
      saturation: the distance to the pixel's own grey, likewise.
      hue: the colour circle is turned by up to this share of it either way, 0 to 0.5.
      erase: share of the crops in which a rectangle is filled with one random colour, 0 to 1
        (Zhong et al.: Random Erasing Data Augmentation, 2020).
      erase_max_area: the largest share of a crop that is erased, 0.02 to 1.
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
        """Draws for the images of a step.

        Args:
          seed: any integer.
          step: of the training.
          slots: [N] places in the global batch.
          height: [..., N] of the stored images, pixels; with more axes, for several candidates of
            each slot, which are drawn alike.
          width: [..., N] likewise.
          image_size: side of the square that crops are brought to, pixels.
          classes: [N] for class_turns and class_mirrors, the place of each image's class in the
            global batch.

        Returns:
          What `pixels` takes, by name: "window" [..., N, 4] int32 (top, left, height, width of the
          crop), and where they are asked for "flip" [N] bool, "affine" [N, 8] float32 (from pixels
          of the result to those of the crop, as TensorFlow's projective transforms), "colour"
          [N, 3, 4] float32 (a matrix of RGB and 1), "erased" [N, 7] int32 (a window of the result,
          which may be empty, and a colour).
        """
        numbers = uniform(key(seed, _AUGMENTATION, step, slots), 19).T
        drawn = {"window": self._windows(numbers[:4], height, width)}
        if self.flip:
            drawn["flip"] = numbers[4] < 0.5
        if self.rotate or self.shear or self.class_turns or self.class_mirrors:
            whole = self._of_classes(seed, step, slots, classes)
            drawn["affine"] = self._affine(*whole, numbers[17], numbers[18], image_size)
        if self._colours:
            drawn["colour"] = self._colour_matrices(*numbers[5:9])
        if self.erase:
            drawn["erased"] = self._erased(numbers[9:17], image_size)
        return drawn

    def _windows(self, numbers: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        area = (self.min_area + (self.max_area - self.min_area) * numbers[0]) * height * width
        aspect = self.max_aspect ** (2 * numbers[1] - 1)
        crop_height = np.clip(np.rint(np.sqrt(area / aspect)), 1, height)
        crop_width = np.clip(np.rint(np.sqrt(area * aspect)), 1, width)
        top = np.floor(numbers[2] * (height - crop_height + 1))
        left = np.floor(numbers[3] * (width - crop_width + 1))
        return np.stack([top, left, crop_height, crop_width], axis=-1).astype(np.int32)

    def _of_classes(
        self, seed: int, step: int, slots: np.ndarray, classes: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Quarter turns of each image, [N], 0 to 3, and what x is multiplied by, [N], 1 or -1."""
        turns, signs = np.zeros(len(slots)), np.ones(len(slots))
        if self.class_turns or self.class_mirrors:
            if classes is None:
                raise ValueError("class_turns, class_mirrors: classes are needed")
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
        """About the centre; rows of [[a0, a1, a2], [a3, a4, a5]] and two zeros, x before y."""
        angle = np.pi / 2 * turns + np.deg2rad(self.rotate) * (2 * rotate - 1)
        slant = np.tan(np.deg2rad(self.shear) * (2 * shear - 1))
        cos, sin, centre = np.cos(angle), np.sin(angle), (size - 1) / 2
        linear = np.stack([[cos, cos * slant - sin], [sin, sin * slant + cos]])  # [2, 2, N]
        linear[0] *= signs  # of the crop: the class is mirrored before its images are turned
        offset = centre - linear.sum(axis=1) * centre
        rows = [*linear[0], offset[0], *linear[1], offset[1], 0 * angle, 0 * angle]
        return np.stack(rows, axis=1).astype(np.float32)

    def _colour_matrices(
        self, brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray
    ) -> np.ndarray:
        """All four are affine in RGB, so one small matrix does them at once, [N, 3, 4]."""

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
