"""Embeddings of image files, by an exported model: no more of the trainer is needed for it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from preprocessing.errors import UsageError
from preprocessing.images import BadImage, ImageSettings, canonical_jpeg

FORMAT = 1
CARD_FILE = "model_card.json"
SAVED_MODEL = "saved_model"
EXPORT = "export"  # folder of a run
BATCH = 32


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What an exported model says of itself.

    Attributes:
      directory: of the export.
      fingerprint: of what fixes an embedding.
      embedding_dim: D.
      settings: how an image is made canonical before it is embedded.
      content: all of model_card.json.
    """

    directory: str
    fingerprint: str
    embedding_dim: int
    settings: ImageSettings
    content: Mapping[str, Any]


def load_card(directory: str) -> ModelCard:
    """Reads model_card.json of an export, or of a run that has one.

    Raises:
      UsageError: no export there, or not one of this version.
    """
    places = [directory, os.path.join(directory, EXPORT)]
    found = [place for place in places if os.path.isfile(os.path.join(place, CARD_FILE))]
    if not found:
        there = "no exported model" if os.path.isdir(directory) else "no such folder"
        raise UsageError(
            f"model {directory}: {there}; make it with `python -m trainer.main --mode=export`"
        )
    path = os.path.join(found[0], CARD_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content["format"] != FORMAT:
            raise UsageError(
                f"{path}: format version {content['format']}, this is version {FORMAT};"
                " export again"
            )
        made = content["preprocessing"]
        return ModelCard(
            directory=found[0],
            fingerprint=content["fingerprint"],
            embedding_dim=content["embedding_dim"],
            settings=ImageSettings(
                short_side=made["short_side"],
                quality=made["quality"],
                background=tuple(made["background"]),
            ),
            content=content,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not written by tripletmill ({error!r})") from error


class Embedder:
    """An exported model, loaded; may be used from several threads at once.

    Args:
      card: of the export.
      batch_size: images that go through the model at a time, at most.

    Raises:
      UsageError: its SavedModel cannot be loaded.
    """

    def __init__(self, card: ModelCard, *, batch_size: int = BATCH) -> None:
        from trainer.startup import import_tensorflow

        import_tensorflow()
        import tensorflow as tf

        self.card = card
        self._batch_size = batch_size
        path = os.path.join(card.directory, SAVED_MODEL)
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
            return canonical_jpeg(image, self.card.settings).jpeg
        except BadImage as error:
            return error
