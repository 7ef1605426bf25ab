"""Whether two pictures are the same one, whatever a model makes of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from trainer.pictures.source_images import SourceImages, thumbnail_or_none
from tripletmill.cli.progress import Progress
from tripletmill.formats.embeddings import Embeddings

SIDE = 16  # pixels of the squares that are compared


def alike(embeddings: Embeddings, pictures: SourceImages, pairs: np.ndarray) -> np.ndarray:
    """How alike the pictures of pairs of rows are: the correlation of 16 x 16 pixels.

    Each picture is shrunk to the square by area, and each of its colours has its mean taken away. A
    copy of another size or quality has .99 or more.

    Args:
      embeddings: whose rows the pairs are of.
      pictures: where their pictures come from.
      pairs: integers [P, 2].

    Returns:
      float64 [P], in [-1, 1]; 0 for a picture of one colour; NaN where one is missing or damaged.
    """
    squares: dict[int, np.ndarray | None] = {}

    def square(row: int) -> np.ndarray | None:
        if row not in squares:
            source_id, split = embeddings.source_id[row], embeddings.split[row]
            squares[row] = _square(thumbnail_or_none(pictures.of(source_id, split)))
        return squares[row]

    found = np.full(len(pairs), np.nan)
    with Progress() as progress:
        for number, (one, other) in enumerate(pairs.tolist()):
            progress.update(f"pictures compared: {number:,} of {len(pairs):,} pairs")
            both = square(one), square(other)
            if both[0] is not None and both[1] is not None:
                found[number] = float(np.clip(both[0] @ both[1], -1, 1))
    return found


def _square(pixels: np.ndarray | None) -> np.ndarray | None:
    """[768] of length 1 or 0; the mean of each colour is 0."""
    if pixels is None:
        return None
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float64)
    values = (values - values.mean(axis=(0, 1))).ravel()
    length = np.linalg.norm(values)
    return values / length if length else values
