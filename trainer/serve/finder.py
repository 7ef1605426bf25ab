"""What the page asks: an exported model, its index, and the pictures behind both."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from trainer.export.embedder import Embedder
from trainer.pictures.source_images import FilePictures, RecordPictures, SourceImages
from trainer.search.index import Entry, Neighbour, SearchIndex
from trainer.search.queries import Wanted, require_same_model
from tripletmill.formats.model_card import load_card
from tripletmill.images import BadImage, ImageSettings, canonical_jpeg
from tripletmill.storage import storage

MAX_PIXELS = 50_000_000  # of an upload: decoded, up to 200 MB
SIDE = 224  # of a picture's shorter side: 112 on the page, sharp on dense screens too
SHOWN = ImageSettings(short_side=SIDE)
EXAMPLES = 12


class Finder:
    """Answers from one index; may be used from several threads at once.

    Attributes:
      index: that is searched.

    Raises:
      UsageError: the model and the index do not belong together.
    """

    def __init__(self, index: SearchIndex, embedder: Embedder, pictures: SourceImages) -> None:
        self.index = index
        self._embedder = embedder
        self._pictures = pictures
        # The first image takes longest: the graph is built for it.
        grey = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(grey, "PNG")
        self.of_image(grey.getvalue(), Wanted(neighbours=1))

    @classmethod
    def load(
        cls, *, model: str, index: str, data: str | None = None, images: str | None = None
    ) -> Finder:
        """Reads all that is needed.

        Args:
          model: the export that the index's embeddings are of, or its run.
          index: what `python -m trainer.search build` wrote.
          data: the data set with the index's pictures, or
          images: the folder, or list, that was embedded.

        Raises:
          UsageError: one of them is missing, damaged, or of another model.
        """
        storage.require_local(model, "model")
        card = load_card(model)
        searched = SearchIndex.load(index)
        require_same_model(searched, card)
        pictures = RecordPictures(data) if data else FilePictures(images or "")
        limits = dataclasses.replace(card.image, max_pixels=MAX_PIXELS)
        return cls(searched, Embedder(dataclasses.replace(card, image=limits)), pictures)

    def of_image(self, image: bytes, wanted: Wanted) -> list[Neighbour]:
        """Neighbours of an image file.

        Raises:
          BadImage: it is none, or has more than MAX_PIXELS.
          UsageError: no image is of the wanted class or split.
        """
        # Before the work.
        self.index.check_filter(class_name=wanted.class_name, split=wanted.split)
        vector = self._embedder.embed(image)
        return self.index.nearest(vector[None], **dataclasses.asdict(wanted))[0]

    def of_source_id(self, source_id: str, wanted: Wanted) -> tuple[Entry, list[Neighbour]] | None:
        """An image of the index with its neighbours, None where there is no such image.

        Raises:
          UsageError: no image is of the wanted class or split.
        """
        entry = self.index.find(source_id)
        if entry is None:
            return None
        return entry, self.index.nearest_of(source_id, **dataclasses.asdict(wanted))

    def picture(self, source_id: str) -> bytes | None:
        """A small JPEG of an image of the index, None where there is none or it is bad."""
        entry = self.index.find(source_id)
        image = entry and self._pictures.of(source_id, entry.split)
        try:
            return canonical_jpeg(image, SHOWN).jpeg if image else None
        except BadImage:
            return None

    def examples(self) -> Sequence[Entry]:
        """Images to begin with: EXAMPLES, or all of fewer, evenly over the rows."""
        rows = np.linspace(0, len(self.index) - 1, min(EXAMPLES, len(self.index)))
        return self.index.entries(rows.astype(int).tolist())
