"""Thumbnails that are part of an HTML page, as data: URIs."""

from __future__ import annotations

import base64
import io

from PIL import Image

from trainer.pictures.source_images import SourceImages, thumbnail_or_none
from tripletmill.formats.embeddings import Embeddings

SIDE = 96  # Length of the longer side, in pixels.
QUALITY = 75


class Thumbnails:
    """Thumbnails of embedded images; each is made once.

    Args:
      embeddings: the rows that thumbnails are asked for.
      pictures: where the pictures of these rows come from.

    Attributes:
      missing: source ids of rows that were asked for, and whose picture is missing or damaged.
    """

    def __init__(self, embeddings: Embeddings, pictures: SourceImages) -> None:
        self._embeddings, self._pictures = embeddings, pictures
        self._made: dict[int, str | None] = {}
        self.missing: list[str] = []

    def of(self, row: int) -> str | None:
        """The data: URI of a JPEG of a row's picture; None if the picture is missing or damaged."""
        if row not in self._made:
            source_id, split = self._embeddings.source_id[row], self._embeddings.split[row]
            pixels = thumbnail_or_none(self._pictures.of(source_id, split))
            if pixels is None:
                self.missing.append(source_id)
            self._made[row] = None if pixels is None else _data_uri(Image.fromarray(pixels))
        return self._made[row]


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
