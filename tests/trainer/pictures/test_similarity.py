"""Whether two pictures are the same one: computed by hand, and for real copies."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trainer.pictures.similarity import alike


class Files(dict):
    def of(self, source_id, split=None):
        return self.get((source_id, split))


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def compared(*images: bytes | None) -> list[float]:
    """Compares the first picture with each of the others."""
    files = Files({(f"{n}.png", "test"): each for n, each in enumerate(images)})
    of = SimpleNamespace(
        source_id=[f"{n}.png" for n in range(len(images))], split=["test"] * len(images)
    )
    return alike(of, files, np.array([[0, n] for n in range(1, len(images))])).tolist()


def halves(left: int, right: int) -> np.ndarray:
    return np.repeat([[left] * 16 + [right] * 16], 32, axis=0)[..., None].repeat(3, axis=2)


def test_by_hand():
    """One picture is dark in its left half; of `corner`, only the lower left part is dark."""
    corner = halves(0, 200)
    corner[:16] = 200
    # Less their means, 100 and 150, the quarters are -100, 100, -100, 100 and 50, 50, -150, 50. The
    # mean product is 5000, and the standard deviations are 100 and (30000 / 4)^.5 = 86.6025.
    found = compared(
        png(halves(0, 200)),
        png(halves(0, 200)),
        png(halves(40, 90)),
        png(halves(200, 0)),
        png(halves(0, 200).swapaxes(0, 1)),
        png(corner),
    )
    np.testing.assert_allclose(found, [1, 1, -1, 0, 5000 / 86.6025 / 100], atol=2e-3)  # JPEG


def test_copies_and_others():
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(2)]
    one, other = (each.resize((90, 120), Image.Resampling.BICUBIC) for each in small)
    file = io.BytesIO()
    one.resize((72, 96)).save(file, format="JPEG", quality=50)
    copy, different = compared(png(one), file.getvalue(), png(other))
    assert copy > 0.99
    assert abs(different) < 0.8


def test_one_colour_and_what_is_missing():
    plain = png(np.full([8, 8, 3], [7, 90, 200]))
    assert compared(plain, plain) == [0]
    found = compared(png(halves(0, 9)), None, png(halves(0, 9))[:40], png(halves(0, 9)))
    assert np.isnan(found).tolist() == [True, True, False]
    assert alike(None, None, np.zeros([0, 2], int)).shape == (0,)


@pytest.mark.parametrize("size", [(2, 2), (3, 20)])
def test_any_size(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    assert compared(png(pixels), png(pixels)) == [pytest.approx(1)]
