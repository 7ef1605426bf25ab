"""Times canonical_jpeg on 1600 x 1200 photos, with and without Pillow's draft and reducing_gap.

python -m benchmarks.images
"""

import io

import numpy as np
from PIL import Image

from benchmarks.tables import print_rates
from benchmarks.timing import rates
from tripletmill.images import ImageSettings, canonical_jpeg

SETTINGS = ImageSettings(short_side=256)
NUM_PHOTOS = 8


def photos() -> list[bytes]:
    """Makes JPEGs of smooth noise with some detail, about as hard to decode as photos."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(NUM_PHOTOS):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        pixels = np.asarray(coarse.resize((1600, 1200), Image.Resampling.BICUBIC), np.int16)
        detail = rng.normal(0, 12, pixels.shape).astype(np.int16)
        file = io.BytesIO()
        Image.fromarray((pixels + detail).clip(0, 255).astype(np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def convert_plainly(data: bytes) -> None:
    """Converts an image as canonical_jpeg does, but without draft and reducing_gap."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SETTINGS.short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.BICUBIC).save(io.BytesIO(), "JPEG", quality=90)


def main() -> None:
    files = photos()

    def ours() -> int:
        for data in files:
            canonical_jpeg(data, SETTINGS)
        return len(files)

    def plain() -> int:
        for data in files:
            convert_plainly(data)
        return len(files)

    contestants = {"canonical_jpeg": ours, "without draft and reducing_gap": plain}
    title = "1600 x 1200 to short side 256, one thread"
    print_rates(title, rates(contestants, rounds=5), unit="images")


if __name__ == "__main__":
    main()
