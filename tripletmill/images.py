"""Turns the bytes of an image file into one canonical JPEG, or raises BadImage with a reason.

All functions can be called from many threads at once.
"""

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

# Pillow warns about odd metadata and about sizes above its own limit, which does not mean that the
# pixels are bad. Filters concern the whole process, so they are set here and not in each call.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")

HEAD_BYTES = 12  # as many bytes as are needed to tell the format of a file

_MAX_JPEG_SIDE = 65_500  # the longest side that libjpeg writes, in pixels

_MAGIC: dict[type[ImageFile.ImageFile], tuple[bytes, ...]] = {
    JpegImagePlugin.JpegImageFile: (b"\xff\xd8\xff",),
    PngImagePlugin.PngImageFile: (b"\x89PNG\r\n\x1a\n",),
    GifImagePlugin.GifImageFile: (b"GIF87a", b"GIF89a"),
    BmpImagePlugin.BmpImageFile: (b"BM",),
    TiffImagePlugin.TiffImageFile: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # + is BigTIFF
}

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
_MIN_TILE_LIMIT = 2**20  # pixels; a tile of this size is allowed even if max_pixels is less

# The cheap steps (the scaling of the JPEG decoder, then a box filter) shrink an image to no less
# than this multiple of its final size, and the bicubic filter does the rest. At twice the final
# size, the result looks the same as with the bicubic filter alone.
_REDUCING_GAP = 2.0


class BadImage(Exception):  # noqa: N818
    """An image cannot be used.

    Attributes:
      reason: one short line; all problems of one kind have the same text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How every image of a data set is made canonical.

    Attributes:
      short_side: pixels of the shorter side of the canonical image, 1 or more. Smaller images are
        enlarged, so that a training crop of up to this size always fits.
      quality: quality of the JPEG, 1 to 100.
      background: RGB colour under transparent pixels, each value 0 to 255.
      max_pixels: largest width x height that a file may declare, 1 or more.
      max_aspect_ratio: largest ratio of the long side to the short side, 1 or more.

    Raises:
      UsageError: a value is outside its range.
    """

    short_side: int = 256
    quality: int = 90
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 200_000_000
    max_aspect_ratio: float = 20.0

    def __post_init__(self) -> None:
        """Checks every value."""
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
    """A canonical image.

    Attributes:
      jpeg: bytes of a baseline RGB JPEG without any metadata.
      height: pixels.
      width: pixels.
    """

    jpeg: bytes
    height: int
    width: int


def canonical_jpeg(data: bytes, settings: ImageSettings) -> CanonicalImage:
    """Decodes an image file and encodes it in the one form that a data set has.

    The format (JPEG, PNG, WebP, GIF, BMP or TIFF) is told by the content. The first frame or page
    is used. EXIF orientation is applied. The short side becomes `settings.short_side` pixels, and
    the long side is scaled by the same factor and rounded. Pixels become 8-bit RGB:
    - A transparent image is laid over `settings.background`.
    - 16-bit and 12-bit grey values are scaled, not clipped. 32-bit integers are taken as 16-bit
      values; a value outside 0 to 65535 raises BadImage.
    - A float grey image with values from 0 to 1 is scaled by 255. If its values are from 0 to 255
      instead, they are rounded; a value outside this range raises BadImage.
    - CMYK is converted by the plain formula, and L*a*b* by LittleCMS. ICC profiles are dropped and
      not applied, so wide-gamut photographs become slightly paler.

    The JPEG is baseline and 4:2:0 with standard Huffman tables. Equal bytes, settings and
    `encoder_versions()` give equal JPEGs.

    Args:
      data: bytes of the image file.
      settings: form of the canonical image, and limits of the input.

    Raises:
      BadImage: the data are not an image of these formats, are empty or damaged, or exceed a limit
        of the settings.
    """
    reader = require_image(data)
    with _decoding():
        # The reader is called directly. Image.open has a size limit for the whole process, and it
        # takes a JPEG that holds several pictures for another format.
        image = reader(io.BytesIO(data))
    target = _target_size(image.size, settings)
    with _decoding():
        _check_tile(image, settings)
        box = _load(image, target)
        orientation = _orientation(image)
        pixels = _grey_or_rgb(image, settings.background)
    if pixels.size != target:
        # With bicubic, the whole function is a fifth faster than with Lanczos, and there is less
        # ringing at edges.
        pixels = pixels.resize(
            target, Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP
        )
    if orientation in _UPRIGHT:  # turned last, because the image is small now
        pixels = pixels.transpose(_UPRIGHT[orientation])
    pixels = pixels.convert("RGB")
    pixels.info = {}  # Pillow would write a comment in it to the JPEG
    out = io.BytesIO()
    # Optimised Huffman tables would save 4% of the bytes, but with them Pillow fails if the JPEG is
    # larger than the buffer whose size it guesses.
    pixels.save(
        out, "JPEG", quality=settings.quality, subsampling="4:2:0", optimize=False, exif=b""
    )
    return CanonicalImage(jpeg=out.getvalue(), height=pixels.height, width=pixels.width)


def require_image(head: bytes) -> type[ImageFile.ImageFile]:
    """Returns Pillow's reader for a file.

    Args:
      head: the first HEAD_BYTES of the file, or more; fewer if the file is shorter.

    Raises:
      BadImage: the file is empty or has none of the formats.
    """
    if not head:
        raise BadImage("empty file")
    for reader, magic in _MAGIC.items():
        if head.startswith(magic):
            return reader
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    raise BadImage("not a JPEG, PNG, WebP, GIF, BMP or TIFF image")


def encoder_versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide the bytes of `canonical_jpeg`, by name."""
    in_pillow = {"libjpeg": "jpg", "libwebp": "webp", "littlecms": "littlecms2"}
    names = ("libjpeg", "libjpeg_turbo", "libtiff", "libwebp", "littlecms")
    versions = {name: features.version(in_pillow.get(name, name)) or "none" for name in names}
    return {**versions, "pillow": PIL.__version__}


def _check_whole(name: str, value: object, low: int, high: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        range_ = f"{low} or more" if high is None else f"from {low} to {high}"
        raise UsageError(f"{name} must be a whole number, {range_}, not {value!r}")


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turns exceptions into BadImage, because decoders raise almost any kind on damaged data."""
    try:
        yield
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error
    except Exception as error:
        raise BadImage(f"truncated, damaged or unsupported: {_stable_text(error)}") from error


def _stable_text(error: Exception) -> str:
    """Returns an error's message without numbers, bytes and addresses, which differ by file."""
    text = re.sub(r"<[^>]*>|b?'[^']*'|b?\"[^\"]*\"", "...", " ".join(str(error).split()))
    text = re.sub(r"0[xX][0-9a-fA-F]+|\d+", "N", text)
    if not re.search("[a-z]", text):
        text = type(error.__cause__ or error).__name__
    return text[:120]


def _target_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """Returns the canonical (width, height) of an image before it is turned upright."""
    short, long = sorted(size)
    if short * long > settings.max_pixels:
        raise BadImage(f"more than {settings.max_pixels} pixels")
    if long > short * settings.max_aspect_ratio:
        raise BadImage(f"aspect ratio above {settings.max_aspect_ratio:g}")
    side = settings.short_side
    long_side = (2 * side * long + short) // (2 * short)  # rounded, without floating point
    return (side, long_side) if size[0] == short else (long_side, side)


def _check_tile(image: ImageFile.ImageFile, settings: ImageSettings) -> None:
    """Raises BadImage for a TIFF with a huge tile: a tile is decoded whole, even for few pixels."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    sides = [image.tag_v2.get(tag, 0) for tag in _TIFF_TILE]
    most = max(settings.max_pixels, _MIN_TILE_LIMIT)
    if not all(isinstance(side, int) for side in sides):
        raise BadImage("tiles of no size")
    if math.prod(sides) > most:
        raise BadImage(f"a tile of more than {most} pixels")


def _load(
    image: ImageFile.ImageFile, target: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Decodes the pixels, and returns the box of pixels that shows the image; None for all pixels.

    A JPEG is decoded at an eighth, a quarter or a half of its size if the result has at least
    _REDUCING_GAP times the target size.
    """
    enough = (math.ceil(target[0] * _REDUCING_GAP), math.ceil(target[1] * _REDUCING_GAP))
    drafted = image.draft(None, enough)
    image.load()
    return drafted[1] if drafted else None


def _orientation(image: ImageFile.ImageFile) -> int:
    """Returns the EXIF orientation; 1 if there is none, or if Pillow has applied it (TIFF)."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # an image with unreadable EXIF can still be used
        return 1


def _grey_or_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Converts an image to mode L or RGB with 8 bits a channel, without transparency."""
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
        # Adobe's programs write CMYK inverted, and Pillow undoes this for every CMYK JPEG.
        image = ImageChops.invert(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit, 32-bit or float grey to mode L, or to LA if one value is transparent."""
    samples = np.asarray(image)
    lowest, highest = samples.min(), samples.max()
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if image.mode == "F":
        if not (lowest >= 0 and highest <= 255):  # true for NaN, too
            raise BadImage("float samples outside 0..255")
        scale = 255 if highest <= 1 else 1
        grey = (samples * np.float32(scale) + np.float32(0.5)).astype(np.uint8)
    else:
        if lowest < 0 or highest > 65535:
            raise BadImage("integer samples outside 0..65535")
        full = 4095 if tags.get(_TIFF_BITS_PER_SAMPLE) == (12,) else 65535
        table = (np.arange(65536) * 255 + full // 2) // full
        grey = table.astype(np.uint8)[samples]
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only images of up to 8 bits
        grey = 255 - grey
    layer = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return layer
    alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (layer, Image.fromarray(alpha)))
