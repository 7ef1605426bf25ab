"""Reads the images that source ids name, from the records of a data set or from files."""

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

SIDE = 128  # Length of the shorter side of a thumbnail, in pixels.


class SourceImages(Protocol):
    """Where images come from; several threads may use it at once."""

    def of(self, source_id: str, split: str | None = None) -> bytes | None:
        """Content of the image file that a source id names; None if it is missing or damaged."""
        ...


class RecordPictures:
    """The JPEGs in the records of a data set.

    Args:
      data_dir: a finished data set.

    Raises:
      UsageError: there is no data set.
    """

    def __init__(self, data_dir: str) -> None:
        self._splits = {
            split: (index := load_index(data_dir, split), index.column("source_id"))
            for split in load_info(data_dir).num_shards
        }

    def of(self, source_id: str, split: str | None = None) -> bytes | None:
        """Looks in a split of the data set; in all splits, if there is none of this name."""
        splits = [self._splits[split]] if split in self._splits else self._splits.values()
        for index, source_ids in splits:
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
      images: the folder that was embedded, in which source ids are paths; or the manifest (.csv,
        .jsonl) that was embedded, and relative to which source ids are paths.

    Raises:
      UsageError: there is no such folder or manifest.
    """

    def __init__(self, images: str) -> None:
        storage.require_supported(images, "images")
        self._is_manifest = images.lower().endswith(SUFFIXES) and storage.is_file(images)
        if not self._is_manifest and not storage.is_folder(images):
            raise UsageError(f"images {images}: no such folder, and no manifest (.csv, .jsonl)")
        self._images = images

    def of(self, source_id: str, split: str | None = None) -> bytes | None:
        """Reads the file. A file outside the folder is treated as missing."""
        if self._is_manifest:
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


def thumbnail_or_none(image: bytes | None) -> np.ndarray | None:
    """Decodes an image file, and shrinks it so that its shorter side has SIDE pixels.

    Returns:
      uint8 [H, W, 3], RGB, upright; None where there is no image, or a damaged one.
    """
    if image is None:
        return None
    try:
        jpeg = canonical_jpeg(image, ImageSettings(short_side=SIDE)).jpeg
    except BadImage:
        return None
    with Image.open(io.BytesIO(jpeg)) as opened:
        return np.asarray(opened.convert("RGB"))
