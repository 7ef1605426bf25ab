"""Data sets as preprocessing leaves them, of as many classes as asked for, made in seconds.

The same photos come again and again, each record with the label of its own class.
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

from benchmarks.preprocess.photos import Kind, TooLittleSpace, photos
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats import index, tfds_layout
from tripletmill.formats.records import FRAMING_BYTES, RecordWriter, encode_example
from tripletmill.images import BadImage, CanonicalImage, ImageSettings, canonical_jpeg

NAME, SPLIT = "photos", "train"
IMAGES_A_SHARD = 1000  # the command's default
SYNTHETIC = Kind("synthetic", 400, 300, short_side=300, distinct=300)
MOST_PHOTOS = 6000
FEATURES_BYTES = 300  # of a record, beside its JPEG
CLASSES_DONE = "done.json"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What is made.

    Attributes:
      side: short side of the images, pixels.
      classes: of the same size.
      images_per_class: in each.
    """

    side: int
    classes: int
    images_per_class: int

    def __str__(self) -> str:
        return f"{self.side} px, {self.classes:,} classes x {self.images_per_class}"

    def __len__(self) -> int:
        return self.classes * self.images_per_class

    def path(self, folder: Path) -> Path:
        """Where it lies."""
        return folder / f"{self.side}px-{self.classes}x{self.images_per_class}"

    def class_files(self, folder: Path) -> Path:
        """Where files of single classes of it lie."""
        return folder / f"{self.side}px-classes-x{self.images_per_class}"


def make(folder: Path, sets: Sequence[DataSet], *, images: Path | None, class_files: int) -> None:
    """Makes what is not there yet, and for the last data set files of so many classes.

    Args:
      folder: where all of it lies.
      sets: data sets.
      images: a folder of JPEGs, in whatever folders; synthetic ones without.
      class_files: how many, 0 for none.

    Raises:
      TooLittleSpace: the disk cannot take it.
      UsageError: no images, or the folder holds data sets of others.
    """
    source = str(images or "synthetic")
    missing = [each for each in sets if not _is_made(each, folder, source)]
    lacking = class_files and not _has_class_files(sets[-1], folder, source, class_files)
    sides = {each.side for each in missing} | ({sets[-1].side} if lacking else set())
    if not sides:
        return
    with _files(folder, images) as files, Progress() as progress:
        of_side = {side: _canonical(files, side, progress) for side in sorted(sides)}
        _check_space(folder, missing, sets[-1] if lacking else None, class_files, of_side)
        for each in missing:
            _write(each, folder, of_side[each.side], source, progress)
        if lacking:
            _write_class_files(
                sets[-1], folder, of_side[sets[-1].side], source, class_files, progress
            )


def _is_made(data: DataSet, folder: Path, source: str) -> bool:
    path = str(data.path(folder))
    if not index.is_finished(path):
        return False
    if index.load_info(path).input_fingerprint != source:
        raise UsageError(f"{path} is there, of other images; remove it or choose another --folder")
    return True


def _has_class_files(data: DataSet, folder: Path, source: str, count: int) -> bool:
    try:
        text = (data.class_files(folder) / CLASSES_DONE).read_text()
    except FileNotFoundError:
        return False
    return json.loads(text) == [source, count]


@contextlib.contextmanager
def _files(folder: Path, images: Path | None) -> Iterator[list[Path]]:
    with contextlib.ExitStack() as stack:
        if images is None:
            images = stack.enter_context(photos(folder, SYNTHETIC, SYNTHETIC.distinct, links=True))
        files = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".jpeg"))
        yield files[:: -(-len(files) // MOST_PHOTOS) or 1]


def _canonical(files: Sequence[Path], side: int, progress: Progress) -> list[CanonicalImage]:
    settings = ImageSettings(short_side=side)

    def convert(path: Path) -> CanonicalImage | None:
        try:
            return canonical_jpeg(path.read_bytes(), settings)
        except BadImage:
            return None

    found = []
    with ThreadPoolExecutor() as pool:
        for image in pool.map(convert, files):
            found += [image] if image else []
            progress.update(f"{side} px: {len(found):,} of {len(files):,} photos")
    if not found:
        raise UsageError("--images: no JPEG in this folder")
    mean = sum(len(image.jpeg) for image in found) // len(found)
    progress.line(f"{side} px: {len(found):,} photos, {mean:,} bytes each")
    return found


def _check_space(
    folder: Path,
    missing: Sequence[DataSet],
    classes_of: DataSet | None,
    class_files: int,
    of_side: dict[int, list[CanonicalImage]],
) -> None:
    def record(data: DataSet) -> float:
        found = of_side[data.side]
        return sum(len(image.jpeg) for image in found) / len(found) + FEATURES_BYTES

    needed = sum(record(each) * len(each) for each in missing)
    if classes_of:
        # Files take whole blocks.
        needed += class_files * (record(classes_of) * classes_of.images_per_class + 4096)
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {needed / 1e9:.2f} GB needed, {free / 1e9:.0f} GB free"
    if needed > 0.9 * free:
        raise TooLittleSpace(f"{text}; choose another --folder")
    with Progress() as progress:
        progress.line(text)


def _record(
    data: DataSet, number: int, found: Sequence[CanonicalImage]
) -> tuple[bytes, CanonicalImage]:
    """The payload of the image of this number, and what image that is."""
    image = found[number % len(found)]
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
    data: DataSet, folder: Path, found: Sequence[CanonicalImage], source: str, progress: Progress
) -> None:
    path = data.path(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    num_shards = max(2, len(data) // IMAGES_A_SHARD)
    ends = np.linspace(0, len(data), num_shards + 1).astype(int).tolist()
    rows: dict[str, list] = {name: [] for name in ("shard", "offset", "length", "height", "width")}
    for shard, (start, end) in enumerate(itertools.pairwise(ends)):
        file_path = path / index.shard_file(NAME, SPLIT, shard, num_shards)
        with open(file_path, "wb") as file, RecordWriter(file) as writer:
            for number in range(start, end):
                payload, image = _record(data, number, found)
                row = (shard, writer.write(payload), len(payload), image.height, image.width)
                for values, value in zip(rows.values(), row, strict=True):
                    values.append(value)
        progress.update(f"{data}: {end:,} of {len(data):,} images")
    lengths = np.diff(ends).tolist()
    num_bytes = sum(rows["length"]) + len(data) * FRAMING_BYTES
    _write_tables(data, path, rows, found)
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
    data: DataSet, path: Path, rows: dict[str, list], found: Sequence[CanonicalImage]
) -> None:
    hashes = [hashlib.sha256(image.jpeg).digest() for image in found]
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
    found: Sequence[CanonicalImage],
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
                writer.write(_record(data, number, found)[0])
        progress.update(f"{data}: files of {label + 1:,} of {count:,} classes")
    (path / CLASSES_DONE).write_text(json.dumps([source, count]))
