"""Embeddings of image files, by an exported model: no more of the trainer is needed for it."""

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
    """An exported model, loaded; may be used from several threads at once.

    Args:
      card: of the export.
      batch_size: images that go through the model at a time, at most.

    Raises:
      UsageError: its SavedModel cannot be loaded.
    """

    def __init__(self, card: ModelCard, *, batch_size: int = BATCH) -> None:
        from tripletmill.cli.notices import import_tensorflow

        import_tensorflow()
        import tensorflow as tf

        self.card = card
        self._batch_size = batch_size
        path = card.saved_model
        try:
            # Kept: its variables live as long as it does.
            self._model = tf.saved_model.load(path)
            self._serve = self._model.signatures["serving_default"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            text = " ".join(str(error).split())[:200]
            raise UsageError(f"{path}: cannot be loaded ({text}); export again") from error
        self._constant = tf.constant

    def embed(self, image: bytes) -> np.ndarray:
        """Embedding of an image file, float32 [D]; raises BadImage where it is none."""
        [result] = self.embed_all([image])
        if isinstance(result, BadImage):
            raise result
        return result

    def embed_all(self, images: Sequence[bytes]) -> list[np.ndarray | BadImage]:
        """For each image file its embedding, float32 [D], or why it has none.

        An image becomes the JPEG that it would be in the data set, and that is embedded: so it has
        the embedding of its record. In a batch of another size it can differ by float rounding.
        """
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._canonical, images))
        jpegs = {place: each for place, each in enumerate(found) if isinstance(each, bytes)}
        results: list[Any] = [*found]
        places = [*jpegs]
        for start in range(0, len(places), self._batch_size):
            part = places[start : start + self._batch_size]
            embeddings = self._serve(encoded=self._constant([jpegs[place] for place in part]))
            for place, embedding in zip(part, embeddings["embedding"].numpy(), strict=True):
                results[place] = embedding
        return results

    def _canonical(self, image: bytes) -> bytes | BadImage:
        try:
            return canonical_jpeg(image, self.card.image).jpeg
        except BadImage as error:
            return error
