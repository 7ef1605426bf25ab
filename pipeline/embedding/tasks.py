"""The task of a shard: which images it embeds, and how it reads them."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preprocessing.sources.references import ImageRef
from preprocessing.writing.shards import ShardTask as ImagesOfShard
from preprocessing.writing.shards import read_canonical
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.formats.records import DamagedRecord, decode_example, read_record
from tripletmill.images import ImageSettings
from tripletmill.storage import storage
from tripletmill.storage.parallel import map_ahead

RECORD_FEATURES = ("source_id", "class/text", "encoded")


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image to be embedded.

    Attributes:
      source_id: name of the image.
      split: split of the image; None if it has none.
      label: label of its class in the data set; None if the image is not from a data set.
      class_name: name of its class; None if it has none.
      jpeg: the canonical JPEG, or, as text, the reason why the image is left out.
    """

    source_id: str
    split: str | None
    label: int | None
    class_name: str | None
    jpeg: bytes | str


@dataclasses.dataclass(frozen=True)
class ImagesTask:
    """Image files, sorted by source id.

    Attributes:
      number: number of the shard of embeddings.
      refs: the images.
    """

    number: int
    refs: Sequence[ImageRef]

    @property
    def count(self) -> int:
        """Number of images, including those that cannot be read."""
        return len(self.refs)

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Returns a fingerprint of the settings and the images."""
        return ImagesOfShard("", self.number, [(-1, ref) for ref in self.refs]).fingerprint(
            settings
        )

    def read(self, image: ImageSettings, *, threads: int) -> Iterator[Image]:
        """Yields every image in order, with its canonical JPEG.

        Args:
          image: settings of the canonical JPEGs.
          threads: number of images to decode at once.

        Raises:
          UsageError: the disk or the network failed.
        """
        results = map_ahead(lambda ref: read_canonical(ref, image), self.refs, threads=threads)
        for ref, result in zip(self.refs, results, strict=True):
            jpeg = result if isinstance(result, str) else result[1].jpeg
            yield Image(ref.source_id, ref.split, None, ref.class_name or None, jpeg)


@dataclasses.dataclass(frozen=True)
class RecordsTask:
    """The records of one shard of a data set, in file order.

    Attributes:
      number: number of the shard of embeddings.
      data: folder of the data set.
      split: split of the records.
      shard: number of the shard of records in the split.
      shard_file: path of the shard of records.
      index_file: path of the index of the split.
      first_row: row of the first record of the shard in the index.
      count: number of records in the shard.
    """

    number: int
    data: str
    split: str
    shard: int
    shard_file: str
    index_file: str
    first_row: int
    count: int

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Returns a fingerprint of the settings and the records."""
        row = [settings, self.shard_file.rpartition("/")[2], self.first_row, self.count]
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    def read(self, image: ImageSettings, *, threads: int) -> Iterator[Image]:
        """Yields the image of every record in order. The arguments are not needed for records.

        Raises:
          UsageError: the disk or the network failed.
        """
        numbers = range(self.first_row, self.first_row + self.count)
        columns = ["shard", "offset", "label", "source_id"]
        rows = index.read_index_rows(self.index_file, numbers, columns).to_pylist()
        if [row["shard"] for row in rows] != [self.shard] * self.count:
            raise UsageError(f"{self.index_file}: its rows are not in the order of the records")
        try:
            file = io.BytesIO(storage.read(self.shard_file))
        except OSError as error:
            text = error.strerror or str(error)
            raise UsageError(f"{self.shard_file}: {text}") from error
        names: dict[int, str] = {}
        for row in rows:
            class_name, jpeg = _read_record(file, row["offset"], row["source_id"])
            if class_name is None:
                names = names or _class_names(self.data)
                class_name = names[row["label"]]
            yield Image(row["source_id"], self.split, row["label"], class_name, jpeg)


Task = ImagesTask | RecordsTask  # the images of one shard of embeddings


def _read_record(file: io.BytesIO, offset: int, source_id: str) -> tuple[str | None, bytes | str]:
    """Returns the class and the JPEG of a record, or None and what is wrong with the record."""
    try:
        features = decode_example(read_record(file, offset))
        name, class_name, jpeg = (features[f"image/{key}"] for key in RECORD_FEATURES)
    except DamagedRecord as damaged:
        return None, f"damaged record: {damaged.problem}"
    except (KeyError, ValueError) as error:
        return None, f"damaged record: {error}"
    if name != source_id.encode():
        return None, "damaged record: not the one that the index names"
    if not isinstance(class_name, bytes) or not isinstance(jpeg, bytes):
        return None, "damaged record: it holds numbers in place of class and image"
    return class_name.decode(errors="replace"), jpeg


def _class_names(data: str) -> dict[int, str]:
    classes = index.read_classes(index.load_info(data))
    return dict(zip(classes["label"].to_pylist(), classes["name"].to_pylist(), strict=True))
