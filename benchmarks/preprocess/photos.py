"""Makes synthetic photographs in class folders, as large as a camera's or as thumbnails.

They have smooth colours, texture and sensor noise, and as many bytes per pixel as photographs, so
that reading and decoding take as long.
"""

import contextlib
import dataclasses
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from tripletmill.errors import UsageError

IMAGES_PER_CLASS = 50
MIN_CLASSES = 4
MAX_COMMENT = 65_000  # bytes


@dataclasses.dataclass(frozen=True)
class Kind:
    """Images of one size.

    Attributes:
      name: the name on the command line.
      width: pixels.
      height: pixels.
      short_side: the short side after preprocessing, in pixels.
      distinct: how many images differ by more than a comment in the file.
    """

    name: str
    width: int
    height: int
    short_side: int
    distinct: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height} to short side {self.short_side}"


KINDS = {
    "small": Kind("small", 170, 128, short_side=128, distinct=300),
    "large": Kind("large", 1600, 1200, short_side=256, distinct=100),
}


@contextlib.contextmanager
def photos(folder: Path, kind: Kind, count: int, *, links: bool = False) -> Iterator[Path]:
    """Makes a folder of JPEGs, which is removed when the block ends.

    Args:
      folder: the folder in which it is made.
      kind: the kind of images.
      count: how many images.
      links: whether images repeat as hard links, where the disk supports them. Otherwise every
        file has its own content, because its comment differs.

    Raises:
      UsageError: the disk has too little space.
    """
    jpegs = _jpegs(kind)
    needed = count * 4096 if links else count * (4096 + sum(map(len, jpegs)) // len(jpegs))
    free = shutil.disk_usage(folder).free
    # The job's output lies on the same disk and is no larger.
    if 2 * needed > free:
        raise UsageError(
            f"{count:,} images of {kind.width} x {kind.height} and their output take"
            f" {2 * needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another --folder"
        )
    with tempfile.TemporaryDirectory(dir=folder) as root:
        _write(Path(root), jpegs, count, links=links)
        yield Path(root)


def _write(root: Path, jpegs: tuple[bytes, ...], count: int, *, links: bool) -> None:
    classes = max(MIN_CLASSES, count // IMAGES_PER_CLASS)
    for c in range(classes):
        (root / f"{c:05d}").mkdir()

    def path(number: int) -> Path:
        return root / f"{number % classes:05d}" / f"{number:07d}.jpg"

    for number in range(count):
        first = number % len(jpegs)
        if links and number != first:
            try:
                os.link(path(first), path(number))
                continue
            except OSError:  # the disk has no hard links, or allows no more for this file
                pass
        jpeg = jpegs[first]
        path(number).write_bytes(jpeg if links else _with_comment(jpeg, number))


def _with_comment(jpeg: bytes, number: int) -> bytes:
    # Comments differ in length, because files of equal size would count as possible duplicates.
    longest = min(len(jpeg) // 8, MAX_COMMENT)
    comment = b"%08d" % number + bytes(number * 2_654_435_761 % 2**32 % longest)
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    return jpeg[:2] + segment + jpeg[2:]


@functools.cache
def _jpegs(kind: Kind) -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    size = (kind.width, kind.height)
    # Sensor noise is slow to draw, so it is drawn once and shifted for each image.
    levels = rng.normal(128, 5, (kind.height, kind.width, 3)).clip(0, 255)
    grain = Image.fromarray(levels.astype(np.uint8))

    def noise(columns: int) -> Image.Image:
        cells = rng.integers(0, 256, (columns * 3 // 4, columns, 3), np.uint8)
        return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)

    def jpeg() -> bytes:
        image = Image.blend(noise(8), noise(32), 0.35)
        image = Image.blend(image, noise(kind.width // 6), 0.15)
        shifted = ImageChops.offset(grain, *(int(shift) for shift in rng.integers(0, size)))
        file = io.BytesIO()
        quality = int(rng.integers(82, 96))  # file sizes vary like those of photographs
        ImageChops.add(image, shifted, offset=-128).save(file, "JPEG", quality=quality)
        return file.getvalue()

    return tuple(jpeg() for _ in range(kind.distinct))
