"""What TensorBoard shows of a run: curves, mined distances, hard triplets, and val as points.

  tensorboard --logdir MODEL_DIR/tensorboard

These files are written without the package tensorboard. The program reads the points only when it
starts.
"""

import dataclasses
import os
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.evaluation.inference import SplitImages, images_as_evaluated
from trainer.pictures.contact_sheet import Tile, contact_sheet
from trainer.runs.write_errors import naming_write_errors
from trainer.training.train_step import LastBatch
from trainer.workarounds import write_start_event
from tripletmill.storage.storage import write_file

# Triplets in a picture, and the side of one of its images in pixels.
TRIPLETS, TILE = 8, 96
# Points in the projector, and the side of the thumbnail of a point in pixels. WebGL draws no sprite
# image larger than 8,192 x 8,192; 45 thumbnails in a row are 2,880 pixels wide.
POINTS, THUMBNAIL = 2000, 64
CONFIG_FILE = "projector_config.pbtxt"
POINTS_FOLDER = "points"


@dataclasses.dataclass(frozen=True)
class Mined:
    """n triplets of a batch.

    Attributes:
      anchor: [n] rows of the batch.
      positive: [n] rows of the batch.
      negative: [n] rows of the batch.
      to_positive: [n] Euclidean distances from the anchor to the positive, even if the loss uses
        another distance.
      to_negative: [n] Euclidean distances from the anchor to the negative.
    """

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    to_positive: np.ndarray
    to_negative: np.ndarray


def mined(last: LastBatch) -> Mined:
    """Returns the costliest triplet of each anchor, the costliest of all first.

    Anchors without a triplet are left out. Of several hosts, this is for the first one: triplets
    with rows of another host are left out, because the embeddings of these rows are not here.
    """
    is_local = (last.positive < len(last.term)) & (last.negative < len(last.term))
    anchor = np.flatnonzero(np.isfinite(last.term) & is_local)
    anchor = anchor[np.argsort(-last.term[anchor], kind="stable")]
    positive, negative = last.positive[anchor], last.negative[anchor]

    def distance(rows: np.ndarray) -> np.ndarray:
        return np.linalg.norm(last.embeddings[anchor] - last.embeddings[rows], axis=1)

    return Mined(anchor, positive, negative, distance(positive), distance(negative))


def without_repeats(triplets: np.ndarray, most: int) -> np.ndarray:
    """Chooses the first triplets that have no image in common.

    One odd image may be in the costliest triplets of many anchors. It should not fill the picture.

    Args:
      triplets: [n, 3] rows of images.
      most: largest number of triplets to choose.

    Returns:
      Places among the n triplets, ascending.
    """
    seen: set[int] = set()
    places: list[int] = []
    for place, images in enumerate(triplets.tolist()):
        if len(places) == most:
            break
        if seen.isdisjoint(images):
            seen.update(images)
            places.append(place)
    return np.array(places, np.int64)


def sprite(thumbnails: np.ndarray) -> Image.Image:
    """Puts thumbnails into one image, in lines of ceil(sqrt(n)); unused places are white.

    Args:
      thumbnails: [n, s, s, 3] uint8, n at least 1.
    """
    count, side = thumbnails.shape[:2]
    across = int(np.ceil(np.sqrt(count)))
    sheet = np.full([across * across, side, side, 3], 255, np.uint8)
    sheet[:count] = thumbnails
    lines = sheet.reshape(across, across, side, side, 3).swapaxes(1, 2)
    used = -(-count // across)
    return Image.fromarray(lines[:used].reshape(used * side, across * side, 3))


class TensorBoard:
    """Writes the files of a run for TensorBoard.

    All methods raise UsageError if a file cannot be written, for instance on a full disk.

    Args:
      folder: folder of the files.
      first_step: the step that the run begins or goes on with. TensorBoard will not show what
        earlier files say of later steps.
    """

    def __init__(self, folder: str, first_step: int = 0) -> None:
        self._folder = folder
        with naming_write_errors(folder):
            self._writer = tf.summary.create_file_writer(folder)
            # At this event, TensorBoard forgets what it has read of this step and later ones. It
            # ignores the first such event in a folder, so a new run has to write one too.
            write_start_event(self._writer, first_step + 1)
            self._writer.flush()
        self._points = np.zeros(0, np.int64)

    def close(self) -> None:
        """Writes what is buffered. Nothing may be written afterwards."""
        with naming_write_errors(self._folder):
            self._writer.close()

    def scalars(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Adds a point to the curve KIND/NAME of each number.

        Args:
          step: number of steps that are done.
          kind: "train" or "val".
          numbers: values by name.
        """
        with naming_write_errors(self._folder), self._writer.as_default(step):
            for name, value in numbers.items():
                tf.summary.scalar(f"{kind}/{name}", value)

    def batch(self, step: int, last: LastBatch, rows: np.ndarray, images: SplitImages) -> None:
        """Shows distances in the last batch's costliest triplets, and the hardest triplets.

        Args:
          step: number of steps that are done.
          last: the last batch. If it has no triplet, nothing is written.
          rows: [B] rows of the index, the batch as it was planned. A damaged image was replaced by
            another one in training; it is not shown.
          images: images of the train split.
        """
        triplets = mined(last)
        if not len(triplets.anchor):
            return
        sheet = _sheet(f"step {step:,}", triplets, rows, images)
        with naming_write_errors(self._folder), self._writer.as_default(step):
            tf.summary.histogram("train/mined/positive", triplets.to_positive)
            tf.summary.histogram("train/mined/negative", triplets.to_negative)
            tf.summary.image("train/hardest_triplets", np.asarray(sheet)[None])

    def points(self, embeddings: np.ndarray, rows: np.ndarray, images: SplitImages) -> None:
        """Replaces the embeddings that the projector shows.

        Args:
          embeddings: [M, D] float32. If M is larger than POINTS, POINTS evenly spaced ones are
            taken.
          rows: [M] rows of the index. If there are none, nothing is written.
          images: images of the split.
        """
        if not len(rows):
            return
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(np.int64)
        if not np.array_equal(rows[chosen], self._points):
            self._describe(rows[chosen], images)
            self._points = rows[chosen]
        values = embeddings[chosen].astype("<f4")
        self._write(f"{POINTS_FOLDER}/tensors.bytes", values.tobytes())
        config = _CONFIG.format(
            name=images.index.split,
            count=len(values),
            dim=values.shape[1],
            folder=POINTS_FOLDER,
            side=min(THUMBNAIL, images.image_size),
        )
        self._write(CONFIG_FILE, config.encode())

    def _describe(self, rows: np.ndarray, images: SplitImages) -> None:
        """Writes the names and thumbnails of the points."""
        index = images.index
        names = index.class_names()
        sources = index.column("source_id").take(rows).to_pylist()
        lines = ["class\tsource_id"]
        for label, source in zip(index.label[rows].tolist(), sources, strict=True):
            lines.append("\t".join(" ".join(text.split()) for text in (names[label], source)))
        self._write(
            f"{POINTS_FOLDER}/metadata.tsv", ("\n".join(lines) + "\n").encode(errors="replace")
        )
        thumbnails, rows_read = images_as_evaluated(images, rows, THUMBNAIL)
        # Each point has its place. An image that cannot be read any more stays white.
        placed = np.full([len(rows), *thumbnails.shape[1:]], 255, np.uint8)
        placed[np.searchsorted(rows, rows_read)] = thumbnails
        file = BytesIO()
        sprite(placed).save(file, format="PNG")
        self._write(f"{POINTS_FOLDER}/sprite.png", file.getvalue())

    def _write(self, name: str, data: bytes) -> None:
        path = os.path.join(self._folder, name)
        with naming_write_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, data)


_CONFIG = """\
embeddings {{
  tensor_name: "{name}"
  tensor_path: "{folder}/tensors.bytes"
  tensor_shape: {count}
  tensor_shape: {dim}
  metadata_path: "{folder}/metadata.tsv"
  sprite {{
    image_path: "{folder}/sprite.png"
    single_image_dim: {side}
    single_image_dim: {side}
  }}
}}
"""


def _sheet(title: str, triplets: Mined, rows: np.ndarray, images: SplitImages) -> Image.Image:
    """Draws the first triplets, one a line. A triplet with an unreadable image is left out."""
    triplet_rows = rows[np.stack([triplets.anchor, triplets.positive, triplets.negative], axis=1)]
    places = without_repeats(triplet_rows, TRIPLETS)
    pixels, rows_read = images_as_evaluated(images, np.unique(triplet_rows[places]), TILE)
    pixels_of = dict(zip(rows_read.tolist(), pixels, strict=True))
    names = images.index.class_names()

    def tile(row: int, match: bool | None = None, distance: float = 0.0) -> Tile:
        name = names[int(images.index.label[row])]
        return Tile(pixels_of[row], name if match is None else f"{distance:.2f} {name}", match)

    anchors, others = [], []
    for place in places.tolist():
        anchor, positive, negative = triplet_rows[place].tolist()
        if {anchor, positive, negative} <= pixels_of.keys():
            anchors.append(tile(anchor))
            others.append(
                [
                    tile(positive, True, triplets.to_positive[place]),
                    tile(negative, False, triplets.to_negative[place]),
                ]
            )
    headings = ("anchor", "positive", "negative")
    return contact_sheet(anchors, others, title=title, headings=headings, tile_size=TILE)
