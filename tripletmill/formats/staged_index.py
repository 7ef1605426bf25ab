"""The index of a data set in a bucket, with its shards copied to a local disk."""

import dataclasses
import hashlib
import json

from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, DatasetInfo
from tripletmill.storage import storage
from tripletmill.storage.files import FileInfo
from tripletmill.storage.staging import stage_shards

_IF_NO_ROOM = "set another Reading.folder, or Reading.stream = True to read by range"


def stage(index: DatasetIndex, *, folder: str) -> DatasetIndex:
    """Copies the shards of an index to a local disk, unless they already lie on one.

    The shards lie in FOLDER/NAME-HASH afterwards. NAME is the name of the data set. HASH has 16
    hexadecimal digits and depends on everything that decides the bytes of the data set, but not on
    where the data set lies, so copies of one data set share a folder. `stage_shards` says how the
    shards are copied. If all copies lie there already, one listing of the bucket is requested and
    nothing else.

    Args:
      index: the index of a split.
      folder: local folder for copies of data sets.

    Returns:
      The same index with the local paths of the shards; `index` itself if the data set lies on a
      local disk.

    Raises:
      UsageError: the folder cannot be written, the disk is full, or a shard in the bucket is
        missing or is not the shard that the data set was written with.
      OSError: a shard arrived damaged, or the bucket or the network fails in spite of retries.
    """
    info = index.info
    if not storage.is_bucket(info.directory):
        return index
    storage.require_local(folder, "Reading.folder")
    shards = stage_shards(
        _shards(info, index.split),
        storage.join(storage.absolute(folder), f"{info.name}-{_identity(info)}"),
        name=index.split,
        if_no_room=_IF_NO_ROOM,
        if_damaged=f"see {_verify(info)}",
    )
    return dataclasses.replace(index, shards=shards)


def _identity(info: DatasetInfo) -> str:
    """A hash of everything that decides the bytes of all splits."""
    decides = [info.input_fingerprint, info.settings, info.num_bytes, info.shard_crc32c]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _shards(info: DatasetInfo, split: str) -> list[FileInfo]:
    """The shards of a split in the bucket, each with the CRC-32C that the data set gives.

    An older data set gives no CRC-32C, so its shards have the CRC-32C that the bucket gives.
    """
    in_bucket = {file.path: file for file in storage.list_files(info.directory)}
    names = info.shard_files(split)
    checksums = info.shard_crc32c.get(split, ())
    shards = []
    for number, name in enumerate(names):
        path = info.path(name)
        if (file := in_bucket.get(path)) is None:
            raise UsageError(f"data_dir {info.directory}: shard {name} is missing")
        crc32c = checksums[number] if len(checksums) == len(names) else file.crc32c
        if file.crc32c not in (None, crc32c):
            raise UsageError(
                f"{path}: not the bytes that the data set was written with; see {_verify(info)},"
                " then upload or preprocess it again"
            )
        shards.append(dataclasses.replace(file, crc32c=crc32c))
    return shards


def _verify(info: DatasetInfo) -> str:
    return f"`python -m tripletmill verify {info.directory}`"
