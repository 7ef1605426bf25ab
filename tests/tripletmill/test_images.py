"""Bytes of an image become one canonical JPEG: all formats and modes, and all kinds of damage."""

import concurrent.futures
import io
import pickle
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tests.fixtures.images import (
    BLUE,
    GREEN,
    GREYS,
    RED,
    YELLOW,
    corners,
    encode,
    grey_quadrants,
    picture,
    pixels,
    quadrants,
    rotated,
    save,
)
from tripletmill import images
from tripletmill.errors import UsageError
from tripletmill.images import BadImage, CanonicalImage, ImageSettings, canonical_jpeg

# The module sets this filter when it is imported; pytest puts its own filters in front of it.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

SMALL = ImageSettings(short_side=48)
COLOURS = np.array([RED, GREEN, BLUE, YELLOW])
GREY_COLOURS = np.repeat(np.array(GREYS)[:, None], 3, axis=1)


def bad(data, settings_=SMALL):
    """Returns the reason for which the bytes are refused."""
    with pytest.raises(BadImage) as caught:
        canonical_jpeg(data, settings_)
    assert str(caught.value) == caught.value.reason
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 150
    return caught.value.reason


def assert_quadrants(data, expected=COLOURS, tolerance=6.0, size=(72, 48), settings_=SMALL):
    """Asserts that the canonical image of `data` has these colours in its quarters."""
    image = canonical_jpeg(data, settings_)
    assert (image.width, image.height) == size
    assert pixels(image.jpeg).shape == (size[1], size[0], 3)
    np.testing.assert_allclose(corners(image.jpeg), expected, atol=tolerance)


# Formats and modes


PLAIN = """RGB PNG, RGB BMP, RGB TIFF, RGBA PNG, RGBA BMP, RGBA TIFF, P PNG, P GIF, P BMP, P TIFF,
    CMYK TIFF, LAB TIFF, L PNG, L GIF, L BMP, L TIFF, LA PNG, LA TIFF, I;16 PNG, I;16 TIFF, I TIFF,
    F TIFF"""


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        *((*each.split(), {}) for each in PLAIN.split(",")),
        *((mode, "JPEG", {"quality": 95}) for mode in ("RGB", "CMYK", "L")),
        *((mode, "WEBP", {"lossless": True}) for mode in ("RGB", "RGBA", "L")),
        *((mode, "TIFF", {"compression": "tiff_lzw"}) for mode in ("RGB", "I;16")),
        ("RGB", "JPEG", {"quality": 95, "progressive": True}),
        ("RGB", "WEBP", {"quality": 95}),
        ("RGB", "TIFF", {"compression": "jpeg", "quality": 95}),
        ("RGB", "TIFF", {"big_tiff": True}),
    ],
)
def test_modes_and_formats(mode, format, options):
    is_grey = mode in ("L", "LA", "I;16", "I", "F")
    tolerance = 2 if is_grey else 16 if mode == "P" else 6  # the web palette has few colours
    expected = GREY_COLOURS if is_grey else COLOURS
    assert_quadrants(encode(mode, format=format, **options), expected, tolerance)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit(format):
    image = Image.new("1", (96, 64))
    image.paste(1, (48, 0, 96, 64))
    assert_quadrants(save(image, format), np.repeat([[0], [255]] * 2, 3, axis=1), tolerance=2.0)


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for format in ("PNG", "TIFF"):
        image = canonical_jpeg(save(Image.fromarray(ramp), format), ImageSettings(short_side=64))
        expected = np.rint(ramp / 257)
        assert abs(pixels(image.jpeg).mean() - expected.mean()) < 2
        np.testing.assert_allclose(pixels(image.jpeg)[..., 1], expected, atol=4)


def tiff_grey(samples, photometric=1, bits=16):
    """An uncompressed little-endian TIFF, by hand because Pillow does not write this kind."""
    height, width = samples.shape
    if bits == 12:
        flat = samples.reshape(-1, 2).astype(int)
        packed = np.stack(
            [flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], axis=1
        )
        body = packed.astype(np.uint8).tobytes()
    else:
        body = samples.tobytes()
    kind = 3 if samples.dtype == np.float32 else 1
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(body)), (339, 3, kind)]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


def test_16_and_12_bit_tiff_white_is_zero():
    grey = np.asarray(grey_quadrants())
    assert_quadrants(tiff_grey(grey.astype(np.uint16) * 257), GREY_COLOURS, tolerance=2.0)
    inverted = tiff_grey((255 - grey.astype(np.uint16)) * 257, photometric=0)
    assert_quadrants(inverted, GREY_COLOURS, tolerance=2.0)
    twelve = tiff_grey(np.rint(grey / 255 * 4095).astype(np.uint16), bits=12)
    assert_quadrants(twelve, GREY_COLOURS, tolerance=2.0)


def test_range_of_float_and_32_bit_grey():
    grey = np.asarray(grey_quadrants()).astype(np.float32)
    assert_quadrants(save(Image.fromarray(grey), "TIFF"), GREY_COLOURS, tolerance=2.0)
    for dtype, kind, most, values in (
        (np.float32, "float", 255, (-0.5, 256.0, np.nan, np.inf)),
        (np.int32, "integer", 65535, (-1, 65536)),
    ):
        for value in values:
            image = Image.fromarray(np.full((64, 64), value, dtype))
            assert bad(save(image, "TIFF")) == f"{kind} samples outside 0..{most}"


def test_ycck_jpeg():
    # Pillow writes no YCCK. A CMYK file with the right planes becomes YCCK once its marker says so.
    # Pillow inverts every plane, as Adobe does; YCCK inverts only K.
    ink = Image.merge("RGB", quadrants().convert("CMYK").split()[:3])
    planes = [
        Image.eval(plane, lambda value: 255 - value) for plane in ink.convert("YCbCr").split()
    ]
    data = save(Image.merge("CMYK", [*planes, Image.new("L", ink.size)]), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    assert_quadrants(data[:at] + b"\x02" + data[at + 1 :])


def test_format_is_decided_by_content():
    texts = [b"hello", b"%PDF-1.7 not an image at all", b"RIFF\x00\x00\x00\x00WAVEfmt "]
    for data in (*texts, encode("RGB", format="PPM"), encode("RGB", format="ICO")):
        assert bad(data) == "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"
    assert bad(b"") == "empty file"
    assert bad(b"BMW is no bitmap").startswith("truncated, damaged or unsupported: ")


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_first_of_several_frames(format):
    other = Image.new("RGB", (96, 64), (0, 0, 0))
    data = save(quadrants(), format, save_all=True, append_images=[other, other])
    assert_quadrants(data, tolerance=16)


# Transparency


def test_alpha_is_laid_over_the_background():
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 32, 32))
    image.paste((200, 0, 0, 127), (32, 0, 64, 32))
    background = (10, 120, 60)
    expected = [(200, 0, 0), (105, 60, 30), background, background]
    settings_ = ImageSettings(short_side=64, background=background)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert_quadrants(save(image, format, **options), expected, 5, (64, 64), settings_)


def test_grey_with_alpha():
    image = Image.new("LA", (64, 64), (0, 0))
    image.paste((40, 255), (0, 0, 32, 64))
    expected = np.repeat([[40], [255]] * 2, 3, axis=1)
    assert_quadrants(save(image, "PNG"), expected, 3, (64, 64), ImageSettings(short_side=64))


@pytest.mark.parametrize(
    ("mode", "colour", "transparency", "format"),
    [
        ("L", 150, 150, "PNG"),
        ("RGB", BLUE, BLUE, "PNG"),
        ("I;16", 150 * 257, 150 * 257, "PNG"),
        ("1", 1, 1, "PNG"),
        ("P", 2, 2, "PNG"),
        ("P", 2, b"\xff\xff\x00", "PNG"),
        ("P", 2, 2, "GIF"),
    ],
)
def test_one_transparent_value(mode, colour, transparency, format):
    if mode == "P":
        image = Image.new("P", (64, 64), 1)
        image.putpalette([0, 0, 0, *GREEN, *BLUE])
    else:
        image = picture(mode, (64, 64))
    if mode == "I;16":
        samples = np.array(image)
        samples[32:] = colour
        image = Image.fromarray(samples)
    else:
        image.paste(colour, (0, 32, 64, 64))
    data = save(image, format, transparency=transparency)
    magenta = (255, 0, 255)
    settings_ = ImageSettings(short_side=64, background=magenta)
    result = pixels(canonical_jpeg(data, settings_).jpeg)
    np.testing.assert_allclose(result[40:] - magenta, 0, atol=4)
    assert np.abs(result[:24] - magenta).mean() > 30


# Size and orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, format):
    assert_quadrants(rotated(orientation, format), tolerance=16)
    # The image is so large that a JPEG can be decoded at a fraction of its size.
    assert_quadrants(rotated(orientation, format, (960, 640)), tolerance=8)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    assert_quadrants(save(quadrants(), "JPEG", exif=exif, quality=95))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (48, 48)),
        ((2, 3), (48, 72)),
        ((10, 200), (48, 960)),
        ((48, 48), (48, 48)),
        ((49, 48), (49, 48)),
        ((97, 64), (73, 48)),  # 72.75
        ((1001, 777), (62, 48)),  # 61.84
        ((1024, 1024), (48, 48)),
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_short_side(size, expected, format):
    image = canonical_jpeg(encode("RGB", size, format), SMALL)
    assert (image.width, image.height) == expected
    with Image.open(io.BytesIO(image.jpeg)) as decoded:
        assert decoded.size == expected


def test_decoding_at_a_fraction_looks_the_same():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32), np.uint8))
    data = save(coarse.resize((1601, 1203), Image.Resampling.BICUBIC), "JPEG", quality=95)
    result = canonical_jpeg(data, ImageSettings(short_side=128, quality=95))
    with Image.open(io.BytesIO(data)) as image:
        plain = image.resize((result.width, result.height), Image.Resampling.BICUBIC)
    difference = pixels(result.jpeg)[..., 1] - np.asarray(plain).astype(int)
    assert np.abs(difference).mean() < 1  # a shift by half a pixel would give 2.7


def test_limits():
    assert bad(encode("RGB", (30000, 1))) == "aspect ratio above 20"
    assert bad(encode("RGB", (1, 21))) == "aspect ratio above 20"
    canonical_jpeg(encode("RGB", (1, 20)), SMALL)
    assert bad(encode("RGB", (11, 10)), ImageSettings(max_pixels=109)) == "more than 109 pixels"
    canonical_jpeg(encode("RGB", (11, 10)), ImageSettings(max_pixels=110))


def huge_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_bomb_is_refused_by_its_header():
    assert bad(huge_png(60000, 60000)) == "more than 200000000 pixels"
    # This is above Pillow's own limit, but allowed here.
    reason = bad(huge_png(20000, 19000), ImageSettings(max_pixels=400_000_000))
    assert reason.startswith("truncated, damaged or unsupported: ")


def tiled_tiff(side, tile):
    """A TIFF of a black square in one deflated tile."""
    data = zlib.compress(bytes(tile * tile))
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    tags |= {324: 8 + 2 + 12 * (len(tags) + 2) + 4, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_a_bomb_in_one_tile_of_a_small_image():
    assert canonical_jpeg(tiled_tiff(64, 128), SMALL).width == 48
    few = ImageSettings(max_pixels=64 * 64)
    canonical_jpeg(tiled_tiff(64, 1024), few)
    assert bad(tiled_tiff(64, 1040), few) == f"a tile of more than {2**20} pixels"
    assert bad(tiled_tiff(64, 2000), ImageSettings(max_pixels=3_999_999)).endswith("3999999 pixels")
    canonical_jpeg(tiled_tiff(64, 2000), ImageSettings(max_pixels=4_000_000))
    width = struct.pack("<HHI", 322, 4, 1), struct.pack("<HHI", 322, 11, 1)  # a float
    assert bad(tiled_tiff(64, 1040).replace(*width), few) == "tiles of no size"


# Damage


FILES = {
    "JPEG": encode("RGB", format="JPEG"),
    "progressive JPEG": encode("RGB", format="JPEG", progressive=True),
    "rotated JPEG": rotated(6, "JPEG"),
    "CMYK JPEG": encode("CMYK", format="JPEG"),
    "PNG": encode("RGBA", format="PNG"),
    "palette PNG": encode("P", format="PNG", transparency=3),
    "16-bit PNG": encode("I;16", format="PNG"),
    "animated PNG": save(
        quadrants(), "PNG", save_all=True, append_images=[Image.new("RGB", (96, 64))]
    ),
    "WEBP": encode("RGB", format="WEBP"),
    "lossless WEBP": encode("RGBA", format="WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0"),
    "GIF": encode("P", format="GIF"),
    "BMP": encode("RGB", format="BMP"),
    "TIFF": rotated(5, "TIFF"),
    "LZW TIFF": encode("RGB", format="TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encode("RGB", format="TIFF", compression="jpeg"),
    "float TIFF": encode("F", format="TIFF"),
}


@pytest.mark.parametrize("name", [name for name in FILES if name != "animated PNG"])
def test_truncated(name):
    data = FILES[name]
    half, most = (bad(data[: int(len(data) * part)]) for part in (0.5, 0.8))
    for reason in (half, most):
        assert reason.startswith("truncated, damaged or unsupported: ")
        assert not any(character.isdigit() for character in reason)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(choices=st.data())
def test_damage_gives_an_image_or_a_reason(name, choices):
    data = bytearray(FILES[name])
    positions = st.integers(0, len(data) - 1)
    if choices.draw(st.booleans()):
        del data[choices.draw(positions) :]
    # Damage to headers has the most varied effects.
    near_start = st.integers(0, min(len(data), 200) - 1) if data else positions
    for _ in range(choices.draw(st.integers(0, 4))):
        at = choices.draw(st.one_of(near_start, positions))
        if at < len(data):
            data[at] = choices.draw(st.integers(0, 255))
    try:
        image = canonical_jpeg(bytes(data), ImageSettings(short_side=16, max_pixels=1_000_000))
    except BadImage as error:
        assert error.reason  # noqa: PT017 - either outcome will do
    else:
        assert isinstance(image, CanonicalImage)
        assert min(image.height, image.width) == 16


def test_damaged_exif_does_not_lose_the_image():
    entry = struct.pack("<HHII", 0x010F, 2, 5000, 9999)  # the entry points past the end of the file
    for exif in (b"", b"II", b"XX*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x01\0" + entry):
        for format in ("JPEG", "PNG", "WEBP"):
            data = save(quadrants(), format, exif=b"Exif\0\0" + exif)
            assert_quadrants(data, tolerance=16)


def test_nothing_is_printed_or_raised_under_strict_warnings():
    # Pillow warns about this EXIF block. The test runs in a process of its own, because pytest
    # changes the warning filters in this one.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + struct.pack("<HHII", 0x010F, 2, 5000, 9999)
    data = save(quadrants(), "JPEG", exif=exif)
    program = (
        "import sys; from tripletmill import images\n"
        "images.canonical_jpeg(sys.stdin.buffer.read(), images.ImageSettings())"
    )
    for strictness in ("always", "error"):
        done = subprocess.run(
            [sys.executable, "-W", strictness, "-c", program], input=data, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_bad_image_crosses_processes():
    error = pickle.loads(pickle.dumps(BadImage("empty file")))
    assert error.reason == "empty file"


# The file that is written


def markers(jpeg):
    """The kinds of the JPEG's segments before the pixels."""
    found, at = [], 2
    while jpeg[at + 1] != 0xDA:
        found.append(jpeg[at + 1])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return found


def test_no_metadata_and_baseline():
    exif = Image.Exif()
    exif[305] = "some software"
    stripped = ImageSettings(short_side=64)
    metadata = {"exif": exif, "icc_profile": b"profile" * 30, "dpi": (9, 9)}
    for format, options in (
        ("JPEG", {**metadata, "comment": b"hello"}),
        ("PNG", metadata),
        ("GIF", {"comment": b"hello"}),
    ):
        image = canonical_jpeg(save(quadrants(), format, **options), stripped)
        # The segments are JFIF header, quantisation, baseline frame and Huffman tables; there is no
        # EXIF, ICC profile or comment.
        assert set(markers(image.jpeg)) == {0xE0, 0xDB, 0xC0, 0xC4}
        decoded = JpegImageFile(io.BytesIO(image.jpeg))
        with decoded:
            assert decoded.mode == "RGB"
            assert [layer[1:3] for layer in decoded.layer] == [(2, 2), (1, 1), (1, 1)]
            assert set(decoded.info) == {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_quality():
    sizes = [
        len(canonical_jpeg(FILES["PNG"], ImageSettings(short_side=64, quality=quality)).jpeg)
        for quality in (1, 50, 90, 100)
    ]
    assert sizes == sorted(sizes)
    # Noise at full quality takes more than one byte a pixel.
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    image = canonical_jpeg(save(Image.fromarray(noise), "PNG"), ImageSettings(quality=100))
    assert (image.width, image.height) == (256, 256)


def test_same_bytes_every_time_from_many_threads():
    alone = {name: canonical_jpeg(data, SMALL) for name, data in FILES.items()}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            again = pool.map(lambda name: canonical_jpeg(FILES[name], SMALL), FILES)
            assert dict(zip(FILES, again, strict=True)) == alone


def test_encoder_versions():
    versions = images.encoder_versions()
    assert versions["pillow"] == Image.__version__
    assert list(versions) == sorted(versions)
    assert all(isinstance(version, str) and version for version in versions.values())


WRONG: dict[str, list[Any]] = {
    "short_side": [0, 2.5, True, 65501],
    "quality": [0, 101, "90"],
    "background": [(0, 0), (0, 0, 256), "white"],
    "max_pixels": [0],
    "max_aspect_ratio": [0.5, float("nan"), float("inf"), None, 300.0],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_settings_are_checked(name, value):
    with pytest.raises(UsageError) as caught:
        ImageSettings(**{name: value})
    quoted = value[-1] if value == (0, 0, 256) else value
    assert name in str(caught.value)
    assert repr(quoted) in str(caught.value) or f"{value:g}" in str(caught.value)


def test_background_may_be_a_list():
    colours: Any = [1, 2, 3]  # a configuration file may give a list
    assert ImageSettings(background=colours) == ImageSettings(background=(1, 2, 3))
