"""Image bytes to one canonical JPEG, or BadImage with a reason. Safe to call from many threads."""

import contextlib
import dataclasses
import io
import math
import re
import warnings
from collections.abc import Iterator

import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from tripletmill.errors import UsageError

# Pillow warns of odd metadata and of sizes past a limit of its own; neither says that the pixels
# are bad. Filters belong to the whole process, so they are set once, here, and not in each call.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")

HEAD_BYTES = 12  # tell the format

_MAX_JPEG_SIDE = 65_500  # libjpeg writes no longer side

_MAGIC: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),  # BigTIFF
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
)

_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_TILE = (322, 323)  # width and height
_WHITE_IS_ZERO = 0
_USUAL_TILE = 2**20  # pixels; also where images may have fewer

# How far the cheap steps (the JPEG decoder's own scaling, then a box filter) may shrink before the
# real filter takes over: to twice the final size, where the difference cannot be seen.
_GAP = 2.0


class BadImage(Exception):  # noqa: N818
    """An image that cannot be used. `reason` is one short line, the same for the same kind."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How every image of a data set is made canonical.

    short_side: pixels of the shorter side afterwards, 1 or more; smaller images are enlarged, so
        that a training crop of up to this size always fits.
    quality: of the JPEG, 1 to 100.
    background: RGB, each 0 to 255, that transparent pixels are laid over.
    max_pixels: width x height as the file declares it; more is a BadImage.
    max_aspect_ratio: long side / short side, 1 or more; above it is a BadImage.

    Raises UsageError for a value outside its range.
    """

    short_side: int = 256
    quality: int = 90
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 200_000_000
    max_aspect_ratio: float = 20.0

    def __post_init__(self) -> None:
        """Check every value."""
        _check_whole("short_side", self.short_side, 1, _MAX_JPEG_SIDE)
        _check_whole("quality", self.quality, 1, 100)
        _check_whole("max_pixels", self.max_pixels, 1, None)
        ratio = self.max_aspect_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio >= 1:
            raise UsageError(f"max_aspect_ratio must be a number of 1 or more, not {ratio!r}")
        if self.short_side * ratio > _MAX_JPEG_SIDE:
            raise UsageError(
                f"short_side {self.short_side} x max_aspect_ratio {ratio:g} is above "
                f"{_MAX_JPEG_SIDE}, the longest side of a JPEG; lower one of them"
            )
        background = self.background
        if not isinstance(background, (tuple, list)) or len(background) != 3:
            raise UsageError(f"background must be three numbers (R, G, B), not {background!r}")
        for channel in background:
            _check_whole("background", channel, 0, 255)
        object.__setattr__(self, "background", tuple(background))


@dataclasses.dataclass(frozen=True)
class CanonicalImage:
    """A baseline RGB JPEG without any metadata, and its size in pixels."""

    jpeg: bytes
    height: int
    width: int


def canonical_jpeg(data: bytes, settings: ImageSettings) -> CanonicalImage:
    """Decode an image file and write it again in the data set's one form.

    JPEG, PNG, WebP, GIF, BMP and TIFF are told apart by content; of several frames or pages the
    first counts. EXIF orientation is applied, the short side becomes `settings.short_side` and the
    long side follows, rounded. Pixels become 8-bit RGB:
    - transparency is laid over `settings.background`;
    - 16-bit (and 12-bit) grey is scaled, not clipped; 32-bit integers count as 16-bit, and outside
      0..65535 are a BadImage;
    - float grey within 0..1, or else within 0..255, is scaled; anything else is a BadImage;
    - CMYK is converted by the plain formula, L*a*b* through LittleCMS; ICC profiles are dropped,
      not applied, so wide-gamut photographs come out slightly paler.

    The JPEG is baseline, 4:2:0, with standard Huffman tables. The same bytes, settings and
    `encoder_versions()` give the same JPEG.

    Raises BadImage where `data` is no such image, is damaged, or is beyond the settings' limits.
    """
    reader = require_image(data)
    with _decoding():
        # The reader itself, not Image.open: that has a size limit of its own, global to Pillow,
        # and takes a JPEG that holds several pictures for something else.
        image = reader(io.BytesIO(data))
    target = _target_size(image.size, settings)
    with _decoding():
        _check_tile(image, settings)
        box = _load(image, target)
        orientation = _orientation(image)
        pixels = _grey_or_rgb(image, settings.background)
    if pixels.size != target:
        # Bicubic: a fifth faster than Lanczos as a whole, and rings less at edges.
        pixels = pixels.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=_GAP)
    if orientation in _UPRIGHT:  # last, when the image is small
        pixels = pixels.transpose(_UPRIGHT[orientation])
    pixels = pixels.convert("RGB")
    pixels.info = {}  # a comment in it would be written
    out = io.BytesIO()
    # Optimised Huffman tables would save 4% of the bytes, but Pillow then fails where the JPEG
    # outgrows the buffer that it guesses.
    pixels.save(
        out, "JPEG", quality=settings.quality, subsampling="4:2:0", optimize=False, exif=b""
    )
    return CanonicalImage(jpeg=out.getvalue(), height=pixels.height, width=pixels.width)


def require_image(head: bytes) -> type[ImageFile.ImageFile]:
    """The reader for a file that begins with these HEAD_BYTES; BadImage where there is none."""
    if not head:
        raise BadImage("empty file")
    reader = _reader(head)
    if reader is None:
        raise BadImage("not a JPEG, PNG, WebP, GIF, BMP or TIFF image")
    return reader


def encoder_versions() -> dict[str, str]:
    """Versions of the libraries that decide canonical_jpeg's bytes, for a fingerprint."""
    libraries = {
        "libjpeg": "jpg",
        "libjpeg_turbo": "libjpeg_turbo",
        "libtiff": "libtiff",
        "libwebp": "webp",
        "littlecms": "littlecms2",
    }
    found = {name: features.version(feature) or "none" for name, feature in libraries.items()}
    return {**found, "pillow": PIL.__version__}


def _check_whole(name: str, value: object, low: int, high: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        range_ = f"{low} or more" if high is None else f"from {low} to {high}"
        raise UsageError(f"{name} must be a whole number, {range_}, not {value!r}")


def _reader(data: bytes) -> type[ImageFile.ImageFile] | None:
    for magic, reader in _MAGIC:
        if data.startswith(magic):
            return reader
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    return None


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into BadImage: on damaged data nearly everything happens."""
    try:
        yield
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error
    except Exception as error:
        raise BadImage(f"truncated, damaged or unsupported: {_stable_text(error)}") from error


def _stable_text(error: Exception) -> str:
    """The error's message without what differs from file to file: numbers, bytes, addresses."""
    text = re.sub(r"<[^>]*>|b?'[^']*'|b?\"[^\"]*\"", "...", " ".join(str(error).split()))
    text = re.sub(r"0[xX][0-9a-fA-F]+|\d+", "N", text)
    if not re.search("[a-z]", text):
        text = type(error.__cause__ or error).__name__
    return text[:120]


def _target_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """The canonical (width, height), not yet upright, of an image of this (width, height)."""
    short, long = sorted(size)
    if short * long > settings.max_pixels:
        raise BadImage(f"more than {settings.max_pixels} pixels")
    if long > short * settings.max_aspect_ratio:
        raise BadImage(f"aspect ratio above {settings.max_aspect_ratio:g}")
    side = settings.short_side
    long_side = (2 * side * long + short) // (2 * short)  # rounded, without floating point
    return (side, long_side) if size[0] == short else (long_side, side)


def _check_tile(image: ImageFile.ImageFile, settings: ImageSettings) -> None:
    """A TIFF of few pixels may lie in one tile of many, which is decoded whole."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    sides = [image.tag_v2.get(tag, 0) for tag in _TIFF_TILE]
    most = max(settings.max_pixels, _USUAL_TILE)
    if not all(isinstance(side, int) for side in sides):
        raise BadImage("tiles of no size")
    if math.prod(sides) > most:
        raise BadImage(f"a tile of more than {most} pixels")


def _load(
    image: ImageFile.ImageFile, target: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Decode the pixels; returns the box of them that is the whole image, None for all.

    A JPEG is decoded at an eighth, a quarter or a half where that leaves _GAP times the target.
    """
    drafted = image.draft(None, (math.ceil(target[0] * _GAP), math.ceil(target[1] * _GAP)))
    image.load()
    return drafted[1] if drafted else None


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 where there is none (TIFF: Pillow has applied it in loading)."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable EXIF is no reason to lose the image
        return 1


def _grey_or_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in mode L or RGB, 8 bits a channel, opaque."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, background)
        opaque.paste(overlay, mask=overlay)
        return opaque
    if image.mode in ("L", "RGB"):
        return image
    is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    if is_jpeg and image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, inverted
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit integer or float grey as mode L, or LA where one value is transparent."""
    samples = np.asarray(image)
    lowest, highest = samples.min(), samples.max()
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if image.mode == "F":
        if not (lowest >= 0 and highest <= 255):  # not a number fails as well
            raise BadImage("float samples outside 0..255")
        scale = 255 if highest <= 1 else 1
        grey = (samples * np.float32(scale) + np.float32(0.5)).astype(np.uint8)
    else:
        if lowest < 0 or highest > 65535:
            raise BadImage("integer samples outside 0..65535")
        full = 4095 if tags.get(_TIFF_BITS_PER_SAMPLE) == (12,) else 65535
        table = (np.arange(65536) * 255 + full // 2) // full
        grey = table.astype(np.uint8)[samples]
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only up to 8 bits
        grey = 255 - grey
    layer = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return layer
    alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (layer, Image.fromarray(alpha)))
