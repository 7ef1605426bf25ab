"""Synthetic photographs: folders of class folders, in a size of cameras and in one of thumbnails.

Smooth colours, texture and the grain of a sensor: as many bytes a pixel as photographs have, so
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

IMAGES_A_CLASS = 50
MIN_CLASSES = 4
LONGEST_COMMENT = 65_000


@dataclasses.dataclass(frozen=True)
class Kind:
    """Pictures of one size.

    Attributes:
      name: as the command line has it.
      width: pixels.
      height: pixels.
      short_side: what they are made to, pixels.
      distinct: how many differ by more than a comment.
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


class TooLittleSpace(Exception):  # noqa: N818
    """The folder cannot take that many pictures."""


@contextlib.contextmanager
def photos(folder: Path, kind: Kind, count: int, *, links: bool = False) -> Iterator[Path]:
    """A folder of so many JPEGs, gone when the block ends.

    Args:
      folder: where it is made.
      kind: of the pictures.
      count: of the pictures.
      links: the distinct ones again and again, as hard links where the disk can; otherwise every
        file is its own, with a comment that no other has.
    """
    pictures = _pictures(kind)
    needed = count * 4096 if links else count * (4096 + sum(map(len, pictures)) // len(pictures))
    free = shutil.disk_usage(folder).free
    # The job's output lies there as well, and is no larger.
    if 2 * needed > free:
        raise TooLittleSpace(
            f"{count:,} images of {kind.width} x {kind.height} and their output take"
            f" {2 * needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another --folder"
        )
    with tempfile.TemporaryDirectory(dir=folder) as root:
        _write(Path(root), pictures, count, links=links)
        yield Path(root)


def _write(root: Path, pictures: tuple[bytes, ...], count: int, *, links: bool) -> None:
    classes = max(MIN_CLASSES, count // IMAGES_A_CLASS)
    for c in range(classes):
        (root / f"{c:05d}").mkdir()

    def path(number: int) -> Path:
        return root / f"{number % classes:05d}" / f"{number:07d}.jpg"

    for number in range(count):
        place = number % len(pictures)
        if links and number != place:
            try:
                os.link(path(place), path(number))
                continue
            except OSError:  # no hard links on this disk, or no more of this file
                pass
        picture = pictures[place]
        path(number).write_bytes(picture if links else _with_comment(picture, number))


def _with_comment(jpeg: bytes, number: int) -> bytes:
    # Of many lengths: files of one size would all be taken for likely copies of each other.
    longest = min(len(jpeg) // 8, LONGEST_COMMENT)
    comment = b"%08d" % number + bytes(number * 2_654_435_761 % 2**32 % longest)
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    return jpeg[:2] + segment + jpeg[2:]


@functools.cache
def _pictures(kind: Kind) -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    size = (kind.width, kind.height)
    # Drawn once and moved about: it is what takes the time.
    levels = rng.normal(128, 5, (kind.height, kind.width, 3)).clip(0, 255)
    grain = Image.fromarray(levels.astype(np.uint8))

    def noise(columns: int) -> Image.Image:
        cells = rng.integers(0, 256, (columns * 3 // 4, columns, 3), np.uint8)
        return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)

    def picture() -> bytes:
        image = Image.blend(noise(8), noise(32), 0.35)
        image = Image.blend(image, noise(kind.width // 6), 0.15)
        moved = ImageChops.offset(grain, *(int(way) for way in rng.integers(0, size)))
        file = io.BytesIO()
        quality = int(rng.integers(82, 96))  # so that sizes differ as those of photographs
        ImageChops.add(image, moved, offset=-128).save(file, "JPEG", quality=quality)
        return file.getvalue()

    return tuple(picture() for _ in range(kind.distinct))
