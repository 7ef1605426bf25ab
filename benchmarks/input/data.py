"""Makes data sets in the format of preprocessing, with any number of classes, within seconds.

The photos repeat; each record has the label of its own class.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.preprocess.photos import Kind, photos
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats import index, tfds_layout
from tripletmill.formats.records import FRAMING_BYTES, RecordWriter, encode_example
from tripletmill.images import BadImage, CanonicalImage, ImageSettings, canonical_jpeg

NAME, SPLIT = "photos", "train"
IMAGES_PER_SHARD = 1000  # the default of preprocessing
SYNTHETIC = Kind("synthetic", 400, 300, short_side=300, distinct=300)
MAX_PHOTOS = 6000
FEATURES_BYTES = 300  # bytes of a record without its JPEG
DONE_FILE = "done.json"  # written last; says what the class files were made from


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set with classes of equal size.

    Attributes:
      side: short side of the images in pixels.
      classes: how many classes there are.
      images_per_class: how many images each class has.
    """

    side: int
    classes: int
    images_per_class: int

    def __str__(self) -> str:
        return f"{self.side} px, {self.classes:,} classes x {self.images_per_class}"

    def __len__(self) -> int:
        return self.classes * self.images_per_class

    def path(self, folder: Path) -> Path:
        """Returns the folder of the data set."""
        return folder / f"{self.side}px-{self.classes}x{self.images_per_class}"

    def class_files(self, folder: Path) -> Path:
        """Returns the folder of the files that hold one class each."""
        return folder / f"{self.side}px-classes-x{self.images_per_class}"


def make(folder: Path, sets: Sequence[DataSet], *, images: Path | None, class_files: int) -> None:
    """Makes the data sets that do not exist yet, and files of single classes of the last one.

    Args:
      folder: the folder of all data sets.
      sets: the data sets.
      images: a folder with JPEGs at any depth; None for synthetic images.
      class_files: how many classes of the last data set get their own file; 0 for none.

    Raises:
      UsageError: there are no JPEGs, the folder holds data sets of other images, or the disk has
        too little space.
    """
    source = str(images or "synthetic")
    missing = [data for data in sets if not _is_made(data, folder, source)]
    last = sets[-1]
    needs_class_files = class_files > 0 and not _has_class_files(last, folder, source, class_files)
    sides = {data.side for data in missing} | ({last.side} if needs_class_files else set())
    if not sides:
        return
    with _photo_files(folder, images) as files, Progress() as progress:
        images_of_side = {side: _canonical(files, side, progress) for side in sorted(sides)}
        record_bytes = {
            side: sum(len(image.jpeg) for image in canonical) / len(canonical) + FEATURES_BYTES
            for side, canonical in images_of_side.items()
        }
        needed = sum(record_bytes[data.side] * len(data) for data in missing)
        if needs_class_files:
            # A file takes whole blocks on the disk.
            needed += class_files * (record_bytes[last.side] * last.images_per_class + 4096)
        _check_space(folder, needed, progress)
        for data in missing:
            _write(data, folder, images_of_side[data.side], source, progress)
        if needs_class_files:
            canonical = images_of_side[last.side]
            _write_class_files(last, folder, canonical, source, class_files, progress)


def _is_made(data: DataSet, folder: Path, source: str) -> bool:
    path = str(data.path(folder))
    if not index.is_finished(path):
        return False
    if index.load_info(path).input_fingerprint != source:
        raise UsageError(f"{path} was made from other images: remove it or choose another --folder")
    return True


def _has_class_files(data: DataSet, folder: Path, source: str, count: int) -> bool:
    try:
        text = (data.class_files(folder) / DONE_FILE).read_text()
    except FileNotFoundError:
        return False
    return json.loads(text) == [source, count]


@contextlib.contextmanager
def _photo_files(folder: Path, images: Path | None) -> Iterator[list[Path]]:
    """Yields at most MAX_PHOTOS JPEG files; synthetic ones exist while the block runs."""
    with contextlib.ExitStack() as stack:
        if images is None:
            images = stack.enter_context(photos(folder, SYNTHETIC, SYNTHETIC.distinct, links=True))
        files = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".jpeg"))
        yield files[:: -(-len(files) // MAX_PHOTOS) or 1]


def _canonical(files: Sequence[Path], side: int, progress: Progress) -> list[CanonicalImage]:
    settings = ImageSettings(short_side=side)

    def convert(path: Path) -> CanonicalImage | None:
        try:
            return canonical_jpeg(path.read_bytes(), settings)
        except BadImage:
            return None

    images = []
    with ThreadPoolExecutor() as pool:
        for image in pool.map(convert, files):
            if image:
                images.append(image)
            progress.update(f"{side} px: {len(images):,} of {len(files):,} photos")
    if not images:
        raise UsageError("--images: this folder has no JPEG that can be read")
    mean = sum(len(image.jpeg) for image in images) // len(images)
    progress.line(f"{side} px: {len(images):,} photos, {mean:,} bytes each")
    return images


def _check_space(folder: Path, needed: float, progress: Progress) -> None:
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {needed / 1e9:.2f} GB needed, {free / 1e9:.0f} GB free"
    if needed > 0.9 * free:
        raise UsageError(f"{text}; choose another --folder")
    progress.line(text)


def _record(
    data: DataSet, number: int, images: Sequence[CanonicalImage]
) -> tuple[bytes, CanonicalImage]:
    """Returns the payload of the record with this number, and its image."""
    image = images[number % len(images)]
    label = number // data.images_per_class
    payload = encode_example(
        {
            "image/encoded": image.jpeg,
            "image/format": "jpeg",
            "image/height": image.height,
            "image/width": image.width,
            "image/class/label": label,
            "image/class/text": f"{label:07d}",
            "image/source_id": f"{label:07d}/{number}.jpg",
            "image/key/sha256": hashlib.sha256(image.jpeg).digest(),
        }
    )
    return payload, image


def _write(
    data: DataSet, folder: Path, images: Sequence[CanonicalImage], source: str, progress: Progress
) -> None:
    path = data.path(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    num_shards = max(2, len(data) // IMAGES_PER_SHARD)
    ends = np.linspace(0, len(data), num_shards + 1).astype(int).tolist()
    rows: dict[str, list] = {name: [] for name in ("shard", "offset", "length", "height", "width")}
    for shard, (start, end) in enumerate(itertools.pairwise(ends)):
        file_path = path / index.shard_file(NAME, SPLIT, shard, num_shards)
        with open(file_path, "wb") as file, RecordWriter(file) as writer:
            for number in range(start, end):
                payload, image = _record(data, number, images)
                row = (shard, writer.write(payload), len(payload), image.height, image.width)
                for values, value in zip(rows.values(), row, strict=True):
                    values.append(value)
        progress.update(f"{data}: {end:,} of {len(data):,} images")
    lengths = np.diff(ends).tolist()
    num_bytes = sum(rows["length"]) + len(data) * FRAMING_BYTES
    _write_tables(data, path, rows, images)
    (path / index.REJECTED_FILE).write_text("")
    (path / index.FEATURES_FILE).write_text(json.dumps(tfds_layout.features_json()))
    info = tfds_layout.dataset_info_json(
        name=NAME,
        splits={SPLIT: tfds_layout.SplitInfo(shard_lengths=lengths, num_bytes=num_bytes)},
        extra={
            "format_version": index.FORMAT_VERSION,
            "input_fingerprint": source,
            "num_classes": {SPLIT: data.classes},
            "num_images": {SPLIT: len(data)},
            "num_rejected": 0,
            "num_shards": {SPLIT: num_shards},
            "settings": {"short_side": data.side},
        },
    )
    (path / index.INFO_FILE).write_text(json.dumps(info))


def _write_tables(
    data: DataSet, path: Path, rows: dict[str, list], images: Sequence[CanonicalImage]
) -> None:
    hashes = [hashlib.sha256(image.jpeg).digest() for image in images]
    labels = np.repeat(np.arange(data.classes), data.images_per_class)
    names = [f"{label:07d}" for label in range(data.classes)]
    hash_of_row = [hashes[number % len(hashes)] for number in range(len(data))]
    table = {
        **rows,
        "label": labels,
        "source_id": [f"{names[label]}/{number}.jpg" for number, label in enumerate(labels)],
        "sha256": hash_of_row,
        "source_sha256": hash_of_row,
    }
    classes = {
        "label": np.arange(data.classes),
        "name": names,
        "split": [SPLIT] * data.classes,
        "count": [data.images_per_class] * data.classes,
    }
    for file, schema, columns in (
        (index.index_file(NAME, SPLIT), index.INDEX_SCHEMA, table),
        (index.CLASSES_FILE, index.CLASSES_SCHEMA, classes),
    ):
        arrays = {name: columns[name] for name in schema.names}
        pq.write_table(pa.Table.from_pydict(arrays, schema=schema), path / file)


def _write_class_files(
    data: DataSet,
    folder: Path,
    images: Sequence[CanonicalImage],
    source: str,
    count: int,
    progress: Progress,
) -> None:
    path = data.class_files(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for label in range(count):
        start = label * data.images_per_class
        with open(path / f"{label:07d}.tfrecord", "wb") as file, RecordWriter(file) as writer:
            for number in range(start, start + data.images_per_class):
                writer.write(_record(data, number, images)[0])
        progress.update(f"{data}: files of {label + 1:,} of {count:,} classes")
    (path / DONE_FILE).write_text(json.dumps([source, count]))
