"""How an exported model reads image files, in TensorFlow's graph."""

import io
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.fixtures.images import encode, picture, rotated, save
from trainer.data.image_ops import central_windows, pixels, shrinks
from trainer.export import saved_model

SIZE = 16
BACKGROUND = (200, 100, 0)
Serve = Callable[[list[bytes]], np.ndarray]


@pytest.fixture(scope="module")
def signatures(tmp_path_factory):
    """The signatures of a model whose embedding is its pixels, so that a test can see them."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    model = keras.Model(image, keras.layers.Flatten()(image))
    folder = str(tmp_path_factory.mktemp("serving"))
    saved_model.save(model, folder, central_share=0.875, background=BACKGROUND)
    loaded = tf.saved_model.load(folder)
    return loaded.signatures


@pytest.fixture(scope="module")
def serve(signatures) -> Serve:
    """Image files -> the pixels that the model sees, int [N, S, S, 3]."""

    def served(files: list[bytes]) -> np.ndarray:
        seen = signatures["serving_default"](encoded=tf.constant(files, tf.string))["embedding"]
        return seen.numpy().astype(int).reshape(-1, SIZE, SIZE, 3)

    return served


def photo(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(noise)


# Some sizes are enlarged, one is unchanged, and others are shrunk, without and with anti-aliasing.
# Some are odd, some are wide and some are high.
SHAPES = [(9, 12), (18, 18), (19, 23), (33, 20), (27, 28), (61, 40), (40, 133), (1, 5)]


def test_jpegs_are_seen_as_in_evaluation(serve):
    files = [save(photo(*shape), "JPEG", quality=90) for shape in SHAPES]
    windows = central_windows(*np.array(SHAPES).T, 0.875)
    drawn = {"window": windows, "shrinks": shrinks(windows, SIZE)}
    assert set(drawn["shrinks"]) == {False, True}
    expected = pixels(tf.constant(files), {k: tf.constant(v) for k, v in drawn.items()}, SIZE)
    np.testing.assert_array_equal(serve(files), expected)


def inner(image: Image.Image) -> np.ndarray:
    """The central square at a share of .875 of a picture 18 pixels high, computed by hand."""
    array = np.asarray(image).astype(int)
    left = (array.shape[1] - SIZE) // 2
    return array[1 : 1 + SIZE, left : left + SIZE]


SHOWN = (25, 18)  # 18 x .875 rounds to 16, so nothing is resized


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_pngs_of_all_kinds(serve, mode):
    (seen,) = serve([encode(mode, SHOWN)])
    np.testing.assert_array_equal(seen, inner(picture(mode, SHOWN).convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_of_few_bits(serve, bits, transparent):
    """TensorFlow's decoder reads palettes without transparency as nearly transparent."""
    few = picture("L", SHOWN).quantize(2**bits)
    data = save(few, "PNG", bits=bits, **({"transparency": 0} if transparent else {}))
    assert data[24] == bits
    (seen,) = serve([data])
    np.testing.assert_array_equal(seen, inner(laid_over(Image.open(io.BytesIO(data)))))


def laid_over(image: Image.Image) -> Image.Image:
    """Lays transparent pixels over the background as preprocessing does."""
    image = image.convert("RGBA")
    opaque = Image.new("RGB", image.size, BACKGROUND)
    opaque.paste(image, mask=image)
    return opaque


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_the_background(serve, mode):
    image = photo(18, 25).convert(mode)
    alpha = np.arange(18 * 25).reshape(18, 25) % 256
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    (seen,) = serve([save(image, "PNG")])
    np.testing.assert_array_equal(seen, inner(laid_over(image)))


def test_16_bits_become_the_upper_8(serve):
    samples = np.random.default_rng(0).integers(0, 65536, (18, 18)).astype(np.uint16)
    (seen,) = serve([save(Image.fromarray(samples), "PNG")])
    np.testing.assert_array_equal(seen[..., 0], inner(Image.fromarray(samples)) // 256)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs(serve, mode):
    """Pixels are those of Pillow, up to TensorFlow's faster, coarser cosine transform."""
    data = encode(mode, SHOWN, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        expected = inner(image.convert("RGB"))
    (seen,) = serve([data])
    np.testing.assert_allclose(seen, expected, atol=20)
    assert np.abs(seen - expected).mean() < 4


def test_exif_orientation_is_not_looked_at(serve):
    """The docs say so: photos must become canonical JPEGs before they are embedded."""
    lying = rotated(6, "JPEG", SHOWN)
    with Image.open(io.BytesIO(lying)) as image:
        stored = image.convert("RGB")
    stored.info.clear()
    plain = save(stored, "PNG")
    np.testing.assert_allclose(serve([lying]), serve([plain]), atol=4)


@pytest.mark.parametrize("format", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_refused(serve, format):
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG or PNG image"):
        serve([encode("RGB", SHOWN), encode("RGB", SHOWN, format)])


WHOLE = {"JPEG": encode("RGB", (64, 64), "JPEG"), "PNG": encode("RGB", (64, 64))}
DAMAGED = [b"", b"\xff\xd8\xff", *(data[:-90] for data in WHOLE.values())]


@pytest.mark.parametrize("data", DAMAGED)
def test_one_damaged_file_fails_the_batch(serve, data):
    """The docs say so."""
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve([WHOLE["JPEG"], data])


@pytest.mark.parametrize("number", [0, 1, 3])
def test_any_number_of_images(signatures, serve, number):
    assert serve([WHOLE["PNG"]] * number).shape == (number, SIZE, SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, (number, SIZE, SIZE, 3)).astype(np.uint8)
    seen = signatures["pixels"](image=tf.constant(images))["embedding"]
    np.testing.assert_array_equal(seen, images.reshape(number, SIZE * SIZE * 3))


def test_decoding_is_placed_on_the_cpu(signatures):
    """Other devices have no kernels for decoding."""
    functions = signatures["serving_default"].graph.as_graph_def().library.function
    nodes = [node for function in functions for node in function.node_def]
    decoding = [node for node in nodes if node.op in ("DecodeAndCropJpeg", "DecodePng", "If")]
    assert {node.op for node in decoding} >= {"DecodeAndCropJpeg", "DecodePng"}
    assert {node.device for node in decoding} == {"/device:CPU:0"}
    assert {node.device for node in nodes if node.op == "Reshape"} == {""}
