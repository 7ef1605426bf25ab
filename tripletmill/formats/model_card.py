"""Reads model_card.json, which describes an exported model (docs/export.md)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tripletmill.formats.info_file import InfoFile
from tripletmill.images import ImageSettings
from tripletmill.storage import storage

CARD_FILE = "model_card.json"
EXPORT_FOLDER = "export"  # name of the exported model's folder in the folder of a run
SAVED_MODEL = "saved_model"  # name of the SavedModel's folder in the folder of an export
FORMAT_VERSION = 1

_CARD = InfoFile(
    CARD_FILE,
    "model",
    FORMAT_VERSION,
    make="export one with `python -m trainer.main --mode=export --model_dir=RUN`",
    again="export again",
)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """The description of an exported model.

    Attributes:
      directory: folder of the model.
      fingerprint: hash of everything that decides an embedding.
      dim: number of values in an embedding.
      image: how the images that the model was trained on were made canonical.
      content: the whole content of model_card.json.
    """

    directory: str
    fingerprint: str
    dim: int
    image: ImageSettings
    content: Mapping[str, Any]

    @property
    def saved_model(self) -> str:
        """Path of the folder that TensorFlow loads."""
        return storage.join(self.directory, SAVED_MODEL)


def load_card(model: str) -> ModelCard:
    """Reads the card of a model.

    Args:
      model: folder of an exported model, or of the run that it was exported from.

    Raises:
      UsageError: the folder holds no exported model, or its card is damaged or has another format
        version.
    """
    storage.require_supported(model, "model")
    run_export = storage.join(model, EXPORT_FOLDER)
    of_run = not _CARD.is_in(model) and _CARD.is_in(run_export)
    directory = run_export if of_run else model
    with _CARD.reading(directory) as content:
        _CARD.require_version(directory, content["format"])
        image = content["preprocessing"]
        return ModelCard(
            directory=directory,
            fingerprint=content["fingerprint"],
            dim=content["embedding_dim"],
            image=ImageSettings(image["short_side"], image["quality"], image["background"]),
            content=content,
        )
