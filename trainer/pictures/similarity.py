"""Compares pictures by 16 x 16 pixels, whatever a model makes of the pictures."""

from __future__ import annotations

import functools

import numpy as np

from trainer.pictures.source_images import SourceImages, thumbnail_or_none
from tripletmill.cli.progress import Progress
from tripletmill.formats.embeddings import Embeddings

SIDE = 16  # Pixels of a side of the squares that are compared.


def area_weights(size: int) -> np.ndarray:
    """Weights float64 [16, size] that shrink a line of `size` pixels to 16 pixels by area.

    Each of the 16 rows sums up to 1. A weight is proportional to the part of a pixel that lies in
    one of 16 equal cells of the line.
    """
    ends = np.arange(size + 1) * SIDE / size
    cells = np.arange(SIDE)[:, None]
    return np.diff(np.clip(ends, cells, cells + 1))


def alike(embeddings: Embeddings, pictures: SourceImages, pairs: np.ndarray) -> np.ndarray:
    """How alike the pictures of pairs of rows are: the correlation of 16 x 16 pixels.

    Each picture is shrunk to the square by area, and the mean of each colour channel is subtracted.
    A copy in another size or JPEG quality has 0.99 or more.

    Args:
      embeddings: the rows that the pairs are of.
      pictures: where the pictures of these rows come from.
      pairs: integers [P, 2].

    Returns:
      float64 [P], in [-1, 1]; 0 where a picture has one colour only, NaN where a picture is missing
      or damaged.
    """

    @functools.cache
    def square(row: int) -> np.ndarray | None:
        image = pictures.of(embeddings.source_id[row], embeddings.split[row])
        return _square(thumbnail_or_none(image))

    correlations = np.full(len(pairs), np.nan)
    with Progress() as progress:
        for number, (left, right) in enumerate(pairs.tolist()):
            progress.update(f"pictures compared: {number:,} of {len(pairs):,} pairs")
            left_square, right_square = square(left), square(right)
            if left_square is not None and right_square is not None:
                correlations[number] = float(np.clip(left_square @ right_square, -1, 1))
    return correlations


def _square(pixels: np.ndarray | None) -> np.ndarray | None:
    """Vector [768] with mean 0 in each colour channel, and of length 1, or 0 for one colour."""
    if pixels is None:
        return None
    height, width, _ = pixels.shape
    channels = pixels.transpose(2, 0, 1).astype(np.float64)
    small = area_weights(height) @ channels @ area_weights(width).T
    values = np.round(small)  # So that a picture of one colour has exactly one value.
    values = (values - values.mean(axis=(1, 2), keepdims=True)).ravel()
    length = np.linalg.norm(values)
    return values / length if length else values
