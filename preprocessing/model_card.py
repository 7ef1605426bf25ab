"""What an exported model says of itself."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from preprocessing import storage
from preprocessing.errors import UsageError
from preprocessing.images import ImageSettings

CARD_FILE = "model_card.json"
EXPORT_FOLDER = "export"  # of a run
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """An exported model.

    Attributes:
      directory: where it lies.
      fingerprint: of all that decides an embedding.
      dim: length of an embedding.
      image: how the images that it was trained on were made canonical.
      content: all of model_card.json.
    """

    directory: str
    fingerprint: str
    dim: int
    image: ImageSettings
    content: Mapping[str, Any]

    @property
    def saved_model(self) -> str:
        """The folder that TensorFlow loads."""
        return storage.join(self.directory, "saved_model")


def load_card(model: str) -> ModelCard:
    """Reads the card of a model.

    Args:
      model: folder of an exported model, or of the run that it was exported from.

    Raises:
      UsageError: there is none, or it is of another format.
    """
    storage.require_supported(model, "model")
    for directory in (model, storage.join(model, EXPORT_FOLDER)):
        path = storage.join(directory, CARD_FILE)
        try:
            data = storage.read(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return _card(path, directory, data)
    found = f"no {CARD_FILE} in it" if storage.is_folder(model) else "no such folder"
    raise UsageError(
        f"model {model}: {found}; export one with"
        " `python -m trainer.main --mode=export --model_dir=RUN`"
    )


def _card(path: str, directory: str, data: bytes) -> ModelCard:
    try:
        content = json.loads(data)
        version = content["format"]
        if version != FORMAT_VERSION:
            raise UsageError(f"{path}: format {version}, this is {FORMAT_VERSION}; export again")
        image = content["preprocessing"]
        return ModelCard(
            directory=directory,
            fingerprint=content["fingerprint"],
            dim=content["embedding_dim"],
            image=ImageSettings(
                short_side=image["short_side"],
                quality=image["quality"],
                background=tuple(image["background"]),
            ),
            content=content,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not written by tripletmill ({error!r})") from error
