"""Exports the best model of a run as files that load without this project."""

import json
import os
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.data.image_ops import check_central_share
from trainer.export import saved_model
from trainer.export.model_card import fingerprint, make_card, markdown, read_metrics
from trainer.export.portable import portable
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.folder import data_of
from trainer.runs.write_errors import naming_write_errors
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import CARD_FILE, EXPORT_FOLDER, SAVED_MODEL
from tripletmill.storage.storage import atomic_folder, exclusive, require_local, write_file

KERAS, TFLITE = "model.keras", "model.tflite"
CARD_FOR_PEOPLE = "model_card.md"
_FILES = {SAVED_MODEL, KERAS, TFLITE, CARD_FILE, CARD_FOR_PEOPLE}
LOCK_FILE = ".export.lock"
_PREPROCESSING = ("short_side", "quality", "background")


def export(
    *,
    model_dir: str,
    build_model: Callable[..., keras.Model],
    central_share: float = 1.0,
    tflite: bool = False,
    configuration: str = "",
) -> None:
    """Exports the best checkpoint of a run to model_dir/export, and replaces an earlier export.

    Writes saved_model/ (see `saved_model.save`), model.keras (images [batch, S, S, 3] ->
    embeddings), model_card.json, model_card.md and, if asked for, model.tflite. Equal checkpoints,
    configurations and versions of TensorFlow and Keras give equal bytes.

    Args:
      model_dir: folder of the run.
      build_model: makes the model; called with weights=None, since the checkpoint has all weights.
      central_share: side of the central square of an image that is used, as a share of its short
        side, in (0, 1]; the same as in the evaluation.
      tflite: whether to write a model for LiteRT (TensorFlow Lite) too: float32, with the signature
        "pixels".
      configuration: the configuration as text, for the model card.

    Raises:
      UsageError: there is no checkpoint, or it is of another model; files that are no export lie in
        model_dir/export; another process exports this run; the disk is full; TensorFlow Lite cannot
        convert this model.
    """
    require_local(model_dir, "model_dir")
    check_central_share(central_share)
    if not Checkpoints.exist(model_dir):
        raise UsageError(f"model_dir {model_dir}: no checkpoint to export; train first")
    target = os.path.join(model_dir, EXPORT_FOLDER)
    _require_ours(target)
    data = data_of(model_dir)
    image = data["settings"]["image"]
    preprocessing = {name: image[name] for name in _PREPROCESSING}
    trained = build_model(weights=None)
    step = Checkpoints(model_dir, trained).restore_best()
    model = portable(trained)
    metrics, outdated = read_metrics(model_dir, step)
    used: dict[str, Any] = {"central_share": central_share, "preprocessing": preprocessing}
    facts = {
        "fingerprint": fingerprint(model, **used),
        "embedding_dim": int(model.output_shape[-1]),
        "image_size": int(model.input_shape[1]),
        **used,
        "data": {"name": data["settings"]["name"], "fingerprint": data["input_fingerprint"]},
        "step": step,
        "metrics": metrics,
    }
    card = make_card(facts, gin=configuration)
    lock = exclusive(os.path.join(model_dir, LOCK_FILE), f"export of {model_dir}")
    with naming_write_errors(target), lock, atomic_folder(target) as folder:
        _write(folder, model, card, tflite=tflite)
    _print_summary(model_dir, target, card, outdated, tflite=tflite)


def _write(folder: str, model: keras.Model, card: Mapping[str, Any], *, tflite: bool) -> None:
    """Writes all files of an export into a folder."""
    saved_model.save(
        model,
        os.path.join(folder, SAVED_MODEL),
        central_share=card["central_share"],
        background=tuple(card["preprocessing"]["background"]),
    )
    _save_keras(model, os.path.join(folder, KERAS))
    if tflite:
        write_file(os.path.join(folder, TFLITE), _tflite(os.path.join(folder, SAVED_MODEL)))
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_file(os.path.join(folder, CARD_FILE), text.encode())
    write_file(os.path.join(folder, CARD_FOR_PEOPLE), markdown(card).encode())


def _print_summary(
    model_dir: str, target: str, card: Mapping[str, Any], outdated: Sequence[str], *, tflite: bool
) -> None:
    print(
        f"model of step {card['step']:,}: {card['image_size']} x {card['image_size']} pixels ->"
        f" {card['embedding_dim']} numbers"
    )
    for path in outdated:
        print(f"note: {path} is of another step, and not in the model card; evaluate again")
    if not card["metrics"]:
        print("note: the model card has no metrics, since this step was not evaluated")
    for name in (SAVED_MODEL, KERAS, *([TFLITE] if tflite else []), CARD_FILE, CARD_FOR_PEOPLE):
        print(f"wrote {os.path.join(target, name)}")
    command = f"python -m pipeline.embed --model_dir={shlex.quote(model_dir)}"
    print(f"next: embed images with it: {command} --images=IMAGES --output=EMBEDDINGS")


def _require_ours(target: str) -> None:
    """Raises UsageError if files that are no export would be replaced."""
    if not os.path.lexists(target):
        return
    is_folder = os.path.isdir(target) and not os.path.islink(target)
    names = {*os.listdir(target)} if is_folder else set()
    if not is_folder or (names and not os.path.isfile(os.path.join(target, CARD_FILE))):
        raise UsageError(f"{target}: this is no export, since it has no {CARD_FILE}; move it away")
    others = sorted(names - _FILES)
    if others:
        raise UsageError(
            f"{target}: the new export would delete {', '.join(others[:3])}"
            f"{', ...' if others[3:] else ''}; move this away"
        )


def _save_keras(model: keras.Model, path: str) -> None:
    """Saves a .keras file without the time of saving, so that equal models give equal bytes."""
    model.save(path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in sorted(file.namelist())}
    metadata = json.loads(content["metadata.json"])
    del metadata["date_saved"]
    content["metadata.json"] = json.dumps(metadata).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, data in content.items():
            file.writestr(zipfile.ZipInfo(name), data)


def _tflite(folder: str) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=[saved_model.PIXELS]
    )
    try:
        return converter.convert()
    except Exception as error:  # The converter raises exceptions of many classes.
        raise UsageError(
            f"export.tflite: TensorFlow Lite cannot convert this model"
            f" ({' '.join(str(error).split())[:300]}); leave it out"
        ) from error
