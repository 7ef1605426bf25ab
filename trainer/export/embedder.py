"""Embeds image files by an exported model. Of the trainer, this module alone is needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tripletmill.errors import UsageError
from tripletmill.formats.model_card import ModelCard
from tripletmill.images import BadImage, canonical_jpeg

BATCH = 32


class Embedder:
    """An exported model in memory; several threads may use it at once.

    Args:
      card: model card of the export.
      batch_size: largest number of images that the model embeds at a time.

    Raises:
      UsageError: the SavedModel cannot be loaded.
    """

    def __init__(self, card: ModelCard, *, batch_size: int = BATCH) -> None:
        from tripletmill.cli.notices import import_tensorflow

        import_tensorflow()
        import tensorflow as tf

        self.card = card
        self._batch_size = batch_size
        path = card.saved_model
        try:
            # The reference keeps the variables of the signature alive.
            self._model = tf.saved_model.load(path)
            self._serve = self._model.signatures["serving_default"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            text = " ".join(str(error).split())[:200]
            raise UsageError(f"{path}: cannot be loaded ({text}); export again") from error
        self._constant = tf.constant

    def embed(self, image: bytes) -> np.ndarray:
        """Embeds one image file.

        Returns:
          float32 [D].

        Raises:
          BadImage: the file is no image, or is damaged.
        """
        [result] = self.embed_all([image])
        if isinstance(result, BadImage):
            raise result
        return result

    def embed_all(self, images: Sequence[bytes]) -> list[np.ndarray | BadImage]:
        """Embeds image files.

        An image is first converted to the JPEG that preprocessing would write for it, so that it
        gets the embedding of its record in the data set. In a batch of another size the embedding
        can differ by float rounding.

        Returns:
          For each file its embedding, float32 [D], or the reason why it has none.
        """
        with ThreadPoolExecutor() as pool:
            results: list[Any] = list(pool.map(self._canonical, images))
        places = [place for place, image in enumerate(results) if isinstance(image, bytes)]
        for start in range(0, len(places), self._batch_size):
            part = places[start : start + self._batch_size]
            embeddings = self._serve(encoded=self._constant([results[place] for place in part]))
            for place, embedding in zip(part, embeddings["embedding"].numpy(), strict=True):
                results[place] = embedding
        return results

    def _canonical(self, image: bytes) -> bytes | BadImage:
        try:
            return canonical_jpeg(image, self.card.image).jpeg
        except BadImage as error:
            return error
