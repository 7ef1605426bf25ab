"""The pictures behind source ids: from the records of a data set, or from image files."""

from __future__ import annotations

import io
import os
from typing import Protocol

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, load_index, load_info
from tripletmill.formats.manifest_paths import SUFFIXES, path_in_manifest
from tripletmill.formats.records import DamagedRecord, decode_example, read_record
from tripletmill.images import BadImage, ImageSettings, canonical_jpeg
from tripletmill.storage import storage

SIDE = 128  # of the shorter side, pixels


class SourceImages(Protocol):
    """Where pictures come from; safe to use from several threads at once."""

    def of(self, source_id: str, split: str | None = None) -> bytes | None:
        """The image file of this name, None where there is none or it is damaged."""
        ...


class RecordPictures:
    """The canonical JPEGs of a data set.

    Args:
      data_dir: a finished data set.

    Raises:
      UsageError: there is none.
    """

    def __init__(self, data_dir: str) -> None:
        self._splits = {
            split: (index := load_index(data_dir, split), index.column("source_id"))
            for split in load_info(data_dir).num_shards
        }

    def of(self, source_id: str, split: str | None = None) -> bytes | None:
        """Looks in one split, or in all."""
        wanted = [self._splits[split]] if split in self._splits else self._splits.values()
        for index, source_ids in wanted:
            row = pc.index(source_ids, source_id).as_py()
            if row >= 0:
                return _jpeg_of(index, row)
        return None


def _jpeg_of(index: DatasetIndex, row: int) -> bytes | None:
    with storage.open_read(index.shards[index.shard[row]]) as file:
        try:
            jpeg = decode_example(read_record(file, int(index.offset[row])))["image/encoded"]
        except (DamagedRecord, ValueError, KeyError):
            return None
    return jpeg if isinstance(jpeg, bytes) else None


class FilePictures:
    """Image files that were embedded, on a disk or in a bucket.

    Args:
      images: the folder that was, in which source ids are paths; or the list (.csv, .jsonl), beside
        which they are.

    Raises:
      UsageError: there is none.
    """

    def __init__(self, images: str) -> None:
        storage.require_supported(images, "images")
        self._is_list = images.lower().endswith(SUFFIXES) and storage.is_file(images)
        if not self._is_list and not storage.is_folder(images):
            raise UsageError(f"images {images}: no such folder, and no list (.csv, .jsonl)")
        self._images = images

    def of(self, source_id: str, split: str | None = None) -> bytes | None:
        """Reads the file; of a folder, none outside it."""
        if self._is_list:
            path = path_in_manifest(self._images, source_id)
        else:
            parts = os.path.normpath(source_id).split(os.sep)
            if os.path.isabs(source_id) or parts[0] == os.pardir:
                return None
            path = storage.join(self._images, source_id)
        try:
            return storage.read(path)
        except OSError as error:
            if storage.problem_of_file(error) is None:
                raise
            return None


def thumbnail(image: bytes) -> np.ndarray:
    """Upright pixels of an image file, uint8 [H, W, 3] RGB, the shorter side SIDE.

    Raises:
      BadImage: it is none.
    """
    jpeg = canonical_jpeg(image, ImageSettings(short_side=SIDE)).jpeg
    with Image.open(io.BytesIO(jpeg)) as opened:
        return np.asarray(opened.convert("RGB"))


def thumbnail_or_none(image: bytes | None) -> np.ndarray | None:
    """The same; None for no image, or a bad one."""
    try:
        return None if image is None else thumbnail(image)
    except BadImage:
        return None
