"""The best model of a run as files that load without this project."""

import json
import os
import shlex
import zipfile
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.data.image_ops import check_central_share
from trainer.export import saved_model
from trainer.export.model_card import card, fingerprint, markdown, read_metrics
from trainer.export.portable import portable
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.folder import data_of
from trainer.runs.write_errors import naming_write_errors
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import CARD_FILE, EXPORT_FOLDER
from tripletmill.storage.storage import atomic_folder, exclusive, require_local, write_file

SAVED_MODEL, KERAS, TFLITE = "saved_model", "model.keras", "model.tflite"
CARD_FOR_PEOPLE = "model_card.md"
FILES = {SAVED_MODEL, KERAS, TFLITE, CARD_FILE, CARD_FOR_PEOPLE}
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
    """Writes model_dir/export from the best checkpoint of a run, an earlier one replaced whole.

    saved_model/ (see `saved_model.save`), model.keras (images [batch, S, S, 3] -> embedding),
    model_card.json and model_card.md, and model.tflite where it is asked for. The same checkpoint,
    configuration and versions give the same bytes.

    Args:
      model_dir: folder of the run.
      build_model: makes the model; called with weights=None, since a checkpoint has them all.
      central_share: side of the central square that is kept, as a share of the short side; as in
        the evaluation.
      tflite: whether to write what LiteRT (TensorFlow Lite) reads, too; float32, of the signature
        "pixels".
      configuration: for the model card, as text.

    Raises:
      UsageError: no checkpoint, or one of another model; something else lies in model_dir/export;
        another process exports; the disk is full; TensorFlow Lite cannot convert this model.
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
    metrics, of_other_steps = read_metrics(model_dir, step)
    described = card(
        fingerprint=fingerprint(model, central_share=central_share, preprocessing=preprocessing),
        embedding_dim=int(model.output_shape[-1]),
        image_size=int(model.input_shape[1]),
        central_share=central_share,
        preprocessing=preprocessing,
        data={"name": data["settings"]["name"], "fingerprint": data["input_fingerprint"]},
        step=step,
        metrics=metrics,
        gin=configuration,
    )
    lock = exclusive(os.path.join(model_dir, LOCK_FILE), f"export of {model_dir}")
    with naming_write_errors(target), lock, atomic_folder(target) as folder:
        saved_model.save(
            model,
            os.path.join(folder, SAVED_MODEL),
            central_share=central_share,
            background=tuple(preprocessing["background"]),
        )
        _save_keras(model, os.path.join(folder, KERAS))
        if tflite:
            content = _tflite(os.path.join(folder, SAVED_MODEL))
            write_file(os.path.join(folder, TFLITE), content)
        text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        write_file(os.path.join(folder, CARD_FILE), text.encode())
        write_file(os.path.join(folder, CARD_FOR_PEOPLE), markdown(described).encode())

    print(
        f"model of step {step:,}: {described['image_size']} x {described['image_size']} pixels ->"
        f" {described['embedding_dim']} numbers"
    )
    for path in of_other_steps:
        print(f"note: {path} is of another step, and not in the model card; evaluate again")
    if not metrics:
        print("note: the model card has no metrics, since this step was not evaluated")
    for name in (SAVED_MODEL, KERAS, *([TFLITE] if tflite else []), CARD_FILE, CARD_FOR_PEOPLE):
        print(f"wrote {os.path.join(target, name)}")
    command = f"python -m pipeline.embed --model_dir={shlex.quote(model_dir)}"
    print(f"next: embed images with it: {command} --images=IMAGES --output=EMBEDDINGS")


def _require_ours(target: str) -> None:
    """Raises UsageError where something else than an export would be replaced."""
    if not os.path.lexists(target):
        return
    names = {*os.listdir(target)} if os.path.isdir(target) else set()
    empty = os.path.isdir(target) and not names
    if os.path.islink(target) or not (empty or os.path.isfile(os.path.join(target, CARD_FILE))):
        raise UsageError(
            f"{target}: something else than an export lies there (no {CARD_FILE}); move it away"
        )
    others = sorted(names - FILES)
    if others:
        raise UsageError(
            f"{target}: {', '.join(others[:3])}{', ...' if others[3:] else ''} beside the export"
            " would be lost; move it away"
        )


def _save_keras(model: keras.Model, path: str) -> None:
    """A .keras file without the time that Keras notes in it."""
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
    except Exception as error:  # of the converter's own kinds, and others
        raise UsageError(
            f"export.tflite: TensorFlow Lite cannot convert this model"
            f" ({' '.join(str(error).split())[:300]}); leave it out"
        ) from error
