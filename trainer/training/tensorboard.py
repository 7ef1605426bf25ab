"""What TensorBoard shows of a run: curves, mined distances, hard triplets, val as points.

  tensorboard --logdir MODEL_DIR/tensorboard

It is not needed to write these files. It reads the points when it is started, and not again.
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.evaluation.inference import SplitImages, compile_on_replicas
from trainer.pictures.contact_sheet import Tile, contact_sheet
from trainer.runs.write_errors import naming_write_errors
from trainer.training.train_step import LastBatch
from tripletmill.storage.storage import write_file

TRIPLETS = 8
TILE = 96
POINTS = 2000
# WebGL draws no sprite image larger than 8,192 x 8,192; 45 thumbnails a line make 2,880.
THUMBNAIL = 64
CONFIG_FILE = "projector_config.pbtxt"
POINTS_FOLDER = "points"


@dataclasses.dataclass(frozen=True)
class Mined:
    """Triplets of a batch, [n] all.

    Attributes:
      anchor: rows of the batch.
      positive: rows of the batch.
      negative: rows of the batch.
      to_positive: Euclidean distance from the anchor, whichever the loss is of.
      to_negative: likewise.
    """

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    to_positive: np.ndarray
    to_negative: np.ndarray

    def __len__(self) -> int:
        return len(self.anchor)


def mined(last: LastBatch) -> Mined:
    """The costliest triplet of each anchor that has one, costliest first.

    Of several hosts, those within the first host's rows, which are the ones it has embeddings of.
    """
    here = (last.positive < len(last.term)) & (last.negative < len(last.term))
    anchor = np.flatnonzero(np.isfinite(last.term) & here)
    anchor = anchor[np.argsort(-last.term[anchor], kind="stable")]
    positive, negative = last.positive[anchor], last.negative[anchor]

    def distance(rows: np.ndarray) -> np.ndarray:
        return np.linalg.norm(last.embeddings[anchor] - last.embeddings[rows], axis=1)

    return Mined(anchor, positive, negative, distance(positive), distance(negative))


def without_repeats(triplets: np.ndarray, most: int) -> np.ndarray:
    """Places of the first triplets [n, 3] of images that share none, [at most `most`].

    One odd image is in the costliest triplets of many anchors; it should not fill the picture.
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


def pictures(images: SplitImages, rows: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as evaluation sees them, shrunk to `side` pixels where they are larger.

    Args:
      images: of the split.
      rows: [n] distinct, of its index.
      side: pixels.

    Returns:
      [m, s, s, 3] uint8 and their rows [m], all but the damaged ones.
    """
    side = min(side, images.image_size)

    def shrunk(batch: tf.Tensor) -> tf.Tensor:
        small = tf.image.resize(tf.cast(batch, tf.float32), [side, side], method="area")
        return tf.cast(tf.round(small), tf.uint8)

    # Of one device: no collective operation of TensorFlow's takes bytes.
    alone = dataclasses.replace(images, strategy=tf.distribute.get_strategy())
    return alone.apply(compile_on_replicas(alone.strategy, shrunk), "pictures", rows)


def sprite(thumbnails: np.ndarray) -> Image.Image:
    """Thumbnails [n, s, s, 3] uint8, n at least 1, in lines of ceil(sqrt(n)); the rest is white."""
    count, side = thumbnails.shape[:2]
    across = int(np.ceil(np.sqrt(count)))
    sheet = np.full([across * across, side, side, 3], 255, np.uint8)
    sheet[:count] = thumbnails
    lines = sheet.reshape(across, across, side, side, 3).swapaxes(1, 2)
    used = -(-count // across)
    return Image.fromarray(lines[:used].reshape(used * side, across * side, 3))


class TensorBoard:
    """The files of a run.

    Whatever writes raises UsageError where it cannot, as on a full disk.

    Args:
      folder: where they lie.
      first_step: where the run begins; what earlier files say of later steps is not shown.
    """

    def __init__(self, folder: str, first_step: int = 0) -> None:
        self._folder = folder
        # TensorBoard takes back what it has read of this step and later ones; but at the first such
        # event of a folder it does not, so that a new run needs one too.
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        event = tf.compat.v1.Event(
            wall_time=time.time(), step=first_step + 1, session_log=start
        ).SerializeToString()
        with naming_write_errors(folder):
            self._writer = tf.summary.create_file_writer(folder)
            # Nothing that is public writes events that are not summaries.
            tf.raw_ops.ImportEvent(writer=self._writer._resource, event=event)
            self._writer.flush()
        self._points = np.zeros(0, np.int64)

    def close(self) -> None:
        """Nothing is written later."""
        with naming_write_errors(self._folder):
            self._writer.close()

    def scalars(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Points of curves KIND/NAME."""
        with naming_write_errors(self._folder), self._writer.as_default(step):
            for name, value in numbers.items():
                tf.summary.scalar(f"{kind}/{name}", value)

    def batch(self, step: int, last: LastBatch, rows: np.ndarray, images: SplitImages) -> None:
        """Distances of the last batch's costliest triplets, and the hardest ones as a picture.

        Args:
          step: it ended with.
          last: the batch; nothing is written if it has no triplet.
          rows: [B] of the index, what it was planned to be. A damaged image, for which another
            stood in, is not shown.
          images: of the training split.
        """
        triplets = mined(last)
        if not len(triplets):
            return
        sheet = _sheet(f"step {step:,}", triplets, rows, images)
        with naming_write_errors(self._folder), self._writer.as_default(step):
            tf.summary.histogram("train/mined/positive", triplets.to_positive)
            tf.summary.histogram("train/mined/negative", triplets.to_negative)
            tf.summary.image("train/hardest_triplets", np.asarray(sheet)[None])

    def points(self, embeddings: np.ndarray, rows: np.ndarray, images: SplitImages) -> None:
        """Embeddings for the projector, in the place of those written before.

        Args:
          embeddings: [M, D] float32; of more than POINTS, so many are taken, evenly.
          rows: [M] of the index; nothing is written if there are none.
          images: of the split.
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
        """What the points stand for: names and thumbnails."""
        index = images.index
        names = index.class_names()
        sources = index.column("source_id").take(rows).to_pylist()
        lines = ["class\tsource_id"]
        for label, source in zip(index.label[rows].tolist(), sources, strict=True):
            lines.append("\t".join(" ".join(text.split()) for text in (names[label], source)))
        self._write(
            f"{POINTS_FOLDER}/metadata.tsv", ("\n".join(lines) + "\n").encode(errors="replace")
        )
        thumbnails, found = pictures(images, rows, THUMBNAIL)
        # A place each: an image that has become unreadable since stays white.
        placed = np.full([len(rows), *thumbnails.shape[1:]], 255, np.uint8)
        placed[np.searchsorted(rows, found)] = thumbnails
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
    """The first triplets, a line each; without those of which an image cannot be read."""
    of = rows[np.stack([triplets.anchor, triplets.positive, triplets.negative], axis=1)]
    places = without_repeats(of, TRIPLETS)
    shown, found = pictures(images, np.unique(of[places]), TILE)
    picture = dict(zip(found.tolist(), shown, strict=True))
    names = images.index.class_names()

    def tile(row: int, match: bool | None = None, distance: float = 0.0) -> Tile:
        name = names[int(images.index.label[row])]
        return Tile(picture[row], name if match is None else f"{distance:.2f} {name}", match)

    anchors, others = [], []
    for place in places.tolist():
        anchor, positive, negative = of[place].tolist()
        if {anchor, positive, negative} <= picture.keys():
            anchors.append(tile(anchor))
            others.append(
                [
                    tile(positive, True, triplets.to_positive[place]),
                    tile(negative, False, triplets.to_negative[place]),
                ]
            )
    headings = ("anchor", "positive", "negative")
    return contact_sheet(anchors, others, title=title, headings=headings, tile_size=TILE)
