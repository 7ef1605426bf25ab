"""Decoding, cropping, resizing and augmenting, compared with numpy and Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.images import save
from tests.fixtures.pixels import jpeg, run, smooth
from trainer.data.augmentation import Augmentation
from trainer.data.image_ops import ANTIALIAS_FROM, central_windows, shrinks

COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.6, "hue": 0.2}
EVERYTHING = Augmentation(min_area=0.2, rotate=25, shear=10, **COLOURS, erase=0.5)


def test_central_windows():
    height, width = np.array([[32, 45, 1], [45, 33, 7]]), np.array([[45, 32, 9], [32, 33, 1]])
    assert central_windows(height, width, 1.0).tolist() == [
        [[0, 6, 32, 32], [6, 0, 32, 32], [0, 4, 1, 1]],
        [[6, 0, 32, 32], [0, 0, 33, 33], [3, 0, 1, 1]],
    ]
    assert central_windows(np.array([32, 2]), np.array([45, 1]), 0.5).tolist() == [
        [8, 14, 16, 16],
        [0, 0, 1, 1],
    ]
    assert central_windows(height, width, 0.875).dtype == np.int32


def test_shrinks():
    """A window shrinks if both its sides shrink by more than ANTIALIAS_FROM."""
    assert ANTIALIAS_FROM == 1.5
    sides = [[96, 96], [97, 97], [97, 96], [500, 96], [500, 97], [10, 10]]
    windows = np.array([[[5, 5, *side] for side in sides]])
    assert shrinks(windows, 64).tolist() == [[False, True, False, False, True, False]]


def assert_close(image, expected) -> None:
    """The tolerance allows for the difference of TensorFlow's fast decoder to Pillow's."""
    difference = np.abs(image - expected.astype(float))
    assert difference.max() <= 6
    assert difference.mean() < 2


def decoded(data) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def resized(image, size) -> np.ndarray:
    """Bilinear resizing with half-pixel centres, one pixel after the other."""
    found = np.empty((size, size, 3))
    for row, column in np.ndindex(size, size):
        value = np.zeros(3)
        y = np.clip((row + 0.5) * image.shape[0] / size - 0.5, 0, image.shape[0] - 1)
        x = np.clip((column + 0.5) * image.shape[1] / size - 0.5, 0, image.shape[1] - 1)
        for i in {int(np.floor(y)), int(np.ceil(y))}:
            for j in {int(np.floor(x)), int(np.ceil(x))}:
                value += (1 - abs(y - i)) * (1 - abs(x - j)) * image[i, j]
        found[row, column] = value
    return found


def turned(image, affine) -> np.ndarray:
    """A bilinear affine map, pixel by pixel; beyond the edge it takes the nearest pixel."""
    found = np.empty(image.shape)
    a, b, c, d, e, f = affine[:6].astype(float)
    for row, column in np.ndindex(image.shape[:2]):
        x, y = a * column + b * row + c, d * column + e * row + f
        value = np.zeros(3)
        for i in (np.floor(y), np.floor(y) + 1):
            for j in (np.floor(x), np.floor(x) + 1):
                place = (int(np.clip(k, 0, len(image) - 1)) for k in (i, j))
                value += (1 - abs(y - i)) * (1 - abs(x - j)) * image[tuple(place)]
        found[row, column] = value
    return found


def reference(data, size, window, flip, affine, colour, erased) -> np.ndarray:
    top, left, height, width = window
    crop = decoded(data)[top : top + height, left : left + width]
    image = turned(resized(crop[:, ::-1] if flip else crop, size), affine)
    image = (image @ colour[:, :3].T + colour[:, 3]).clip(0, 255).round()
    top, left, height, width = erased[:4]
    image[top : top + height, left : left + width] = erased[4:]
    return image


def test_pixels_follow_what_was_drawn():
    """Images of several sizes and crops of several sizes are compared with plain numpy."""
    sizes = np.array([[60, 80], [45, 41], [20, 33], [64, 64], [70, 40], [16, 16]] * 2)
    jpegs = [jpeg(smooth(*size), subsampling=i % 2) for i, size in enumerate(sizes.tolist())]
    drawn = EVERYTHING.draw(3, 1, np.arange(12), *sizes.T, 48)
    assert not shrinks(drawn["window"], 48).any()
    assert 0 < drawn["flip"].sum() < 12
    assert 0 < (drawn["erased"][:, 2] > 0).sum() < 12
    found = run(jpegs, 48, **drawn)
    for i, (image, data) in enumerate(zip(found, jpegs, strict=True)):
        expected = reference(
            data, 48, *(drawn[name][i] for name in ("window", "flip", "affine", "colour", "erased"))
        )
        # Colour changes may stretch the difference between the decoders threefold.
        assert np.abs(image - expected).max() <= 12
        assert np.abs(image - expected).mean() < 1.5


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("top", [0, 1, 7, 9, 30])
@pytest.mark.parametrize("left", [0, 3, 8, 17, 47])
def test_only_the_window_is_decoded_but_rightly(top, left, subsampling):
    """The window need not begin or end with a block of the JPEG."""
    data = jpeg(smooth(64, 80), subsampling=subsampling)
    [image] = run([data], 33, [[top, left, 33, 33]])
    assert_close(image, decoded(data)[top : top + 33, left : left + 33])


def test_the_whole_crop_at_its_own_size_is_the_image():
    data = jpeg(smooth(40, 40))
    [image] = run([data], 40, [[0, 0, 40, 40]])
    assert_close(image, decoded(data))
    [mirrored] = run([data], 40, [[0, 0, 40, 40]], flip=np.array([True]))
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    [same] = run([data], 40, [[0, 0, 40, 40]], flip=np.array([False]))
    np.testing.assert_array_equal(same, image)


def test_grey_images_have_three_channels():
    data = save(Image.fromarray(smooth(16, 16)).convert("L"), "JPEG", quality=97)
    [image] = run([data], 16, [[0, 0, 16, 16]])
    assert (image == image[:, :, :1]).all()
    assert_close(image, decoded(data))


def test_a_quarter_turn():
    """Computed by hand: x of the crop is y of the result, and y of the crop is 6 - x."""
    data = jpeg(smooth(7, 7))
    window = [[0, 0, 7, 7]]
    [image] = run([data], 7, window)
    turn = np.array([[0, 1, 0, -1, 0, 6, 0, 0]], np.float32)
    [found] = run([data], 7, window, affine=turn)
    np.testing.assert_array_equal(found, np.rot90(image, -1))
    nothing = np.array([[1, 0, 0, 0, 1, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(run([data], 7, window, affine=nothing), [image])


def test_values_are_clipped_and_rounded():
    flat = jpeg(np.full((8, 8, 3), 100, np.uint8))
    for factor, offset, expected in ((3, 0, 255), (-1, 0, 0), (0, 99.6, 100), (0, 99.4, 99)):
        colour = np.concatenate([factor * np.eye(3), np.full((3, 1), offset)], axis=1)
        [image] = run([flat], 8, [[0, 0, 8, 8]], colour=colour[None].astype(np.float32))
        assert (image == expected).all()


def test_erased_rectangles():
    flat = jpeg(np.full((8, 8, 3), 100, np.uint8))
    erased = np.array([[2, 1, 3, 6, 255, 0, 7], [0, 0, 0, 8, 9, 9, 9]], np.int32)
    found = run([flat, flat], 8, [[0, 0, 8, 8]] * 2, erased=erased)
    expected = run([flat, flat], 8, [[0, 0, 8, 8]] * 2)
    expected[0, 2:5, 1:7] = [255, 0, 7]
    np.testing.assert_array_equal(found, expected)


def test_shrinking_is_antialiased_where_asked():
    """Stripes that are too fine for the smaller image become grey, as in Pillow."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    data = jpeg(stripes)
    drawn = {"shrinks": np.array([True, False])}
    asked, plain = run([data, data], 12, [[0, 0, 64, 64]] * 2, **drawn)
    assert np.abs(asked - 127).max() < 40
    assert asked.std() < 10
    assert plain.std() > 40
    expected = Image.open(io.BytesIO(data)).resize((12, 12), Image.Resampling.BILINEAR)
    assert np.abs(asked - np.asarray(expected).astype(int)).max() <= 3


@pytest.mark.parametrize("flip", [False, True])
def test_a_shrunk_crop_is_the_right_one(flip):
    data = jpeg(smooth(90, 120))
    window = [5, 31, 80, 70]
    drawn = {"flip": np.array([flip]), "shrinks": np.array([True])}
    [image] = run([data], 20, [window], **drawn)
    crop = decoded(data)[5:85, 31:101].astype(np.uint8)
    expected = Image.fromarray(crop[:, ::-1] if flip else crop).resize(
        (20, 20), Image.Resampling.BILINEAR
    )
    assert_close(image, np.asarray(expected))
