"""Finds neighbours and pictures for the web page, with an exported model and an index."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from trainer.export.embedder import Embedder
from trainer.pictures.source_images import FilePictures, RecordPictures, SourceImages
from trainer.search.index import Entry, Neighbour, SearchIndex
from trainer.search.queries import Wanted, model_of
from tripletmill.images import BadImage, ImageSettings, canonical_jpeg

MAX_PIXELS = 50_000_000  # largest upload, which takes up to 200 MB when it is decoded
SIDE = 224  # pixels of a picture's shorter side; the page shows 112, and dense screens need more
SHOWN = ImageSettings(short_side=SIDE)
EXAMPLES = 12


class Finder:
    """Searches one index. Several threads may use it at once.

    Attributes:
      index: the index that is searched.
    """

    def __init__(self, index: SearchIndex, embedder: Embedder, pictures: SourceImages) -> None:
        self.index = index
        self._embedder = embedder
        self._pictures = pictures
        # TensorFlow builds its graph for the first image, which takes longest. That is done here.
        grey = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(grey, "PNG")
        self.search_image(grey.getvalue(), Wanted(neighbours=1))

    @classmethod
    def load(
        cls, *, model: str, index: str, data: str | None = None, images: str | None = None
    ) -> Finder:
        """Loads the model and the index, and opens the pictures.

        Args:
          model: folder of the exported model that made the embeddings, or of its run.
          index: folder that `python -m trainer.search build` wrote.
          data: the data set that has the pictures of the index. Either this or `images` is given.
          images: the folder or manifest that was embedded.

        Raises:
          UsageError: one of them is missing or damaged, or the index is of another model.
        """
        searched = SearchIndex.load(index)
        card = model_of(searched, model)
        pictures = RecordPictures(data) if data else FilePictures(images or "")
        limits = dataclasses.replace(card.image, max_pixels=MAX_PIXELS)
        return cls(searched, Embedder(dataclasses.replace(card, image=limits)), pictures)

    def search_image(self, image: bytes, wanted: Wanted) -> list[Neighbour]:
        """The neighbours of an image file.

        Raises:
          BadImage: the file is not an image, or has more than MAX_PIXELS.
          UsageError: no image is of the wanted class or split.
        """
        # A wrong filter is reported before the image is embedded, since that takes time.
        self.index.check_filter(class_name=wanted.class_name, split=wanted.split)
        vector = self._embedder.embed(image)
        return self.index.nearest(vector[None], **dataclasses.asdict(wanted))[0]

    def picture(self, source_id: str) -> bytes | None:
        """A small JPEG of an image of the index, None if it is missing or damaged."""
        entry = self.index.find(source_id)
        image = entry and self._pictures.of(source_id, entry.split)
        try:
            return canonical_jpeg(image, SHOWN).jpeg if image else None
        except BadImage:
            return None

    def examples(self) -> Sequence[Entry]:
        """Images from which a search can begin: at most EXAMPLES, spread evenly over the rows."""
        rows = np.linspace(0, len(self.index) - 1, min(EXAMPLES, len(self.index)))
        return self.index.entries(rows.astype(int).tolist())
