"""Where images come from: a folder, a list, or records; on a disk or in a bucket.

A source is cut into parts, small picklable values, so that workers can list them in parallel.
`list_part` gives every file it comes across: as an `ImageRef`, or as `Rejected` with a reason.
"""

import os

from preprocessing.sources.folders import FlatFolderSource, FolderInput, FolderSource
from preprocessing.sources.manifests import ManifestInput, open_manifest
from preprocessing.sources.references import ImageRef, Rejected, Source
from preprocessing.sources.tfds import TfdsInput, TfdsSource
from preprocessing.sources.tfrecords import RecordsInput, TFRecordSource
from preprocessing.sources.tfrecords import read_image as read_record_image
from preprocessing.sources.trees import open_tree
from tripletmill.errors import UsageError
from tripletmill.formats.manifest_paths import SUFFIXES
from tripletmill.images import HEAD_BYTES, require_image
from tripletmill.storage import storage

__all__ = [
    "FolderInput",
    "ImageRef",
    "ManifestInput",
    "RecordsInput",
    "Rejected",
    "Source",
    "TfdsInput",
]

RECORDS, TFDS = "tfrecord:", "tfds:"

LARGE = 64 * 2**20  # bytes


def open_source(
    input: str,
    *,
    folder: FolderInput = FolderInput(),  # noqa: B008 (frozen)
    manifest: ManifestInput = ManifestInput(),  # noqa: B008
    records: RecordsInput = RecordsInput(),  # noqa: B008
    tfds: TfdsInput = TfdsInput(),  # noqa: B008
    tfds_dir: str | None = None,
    labelled: bool = True,
) -> Source:
    """The source that an input stands for.

    Args:
      input: a folder; a file whose name ends in .csv or .jsonl; tfrecord:PATTERN; or
        tfds:NAME[/CONFIG][:VERSION].
      folder: how a folder is read.
      manifest: how a list is read.
      records: how TFRecord files are read.
      tfds: how a data set of TensorFlow Datasets is read.
      tfds_dir: where such data sets lie.
      labelled: whether every image must have a class; without it, a folder may have no class
        folders, a list or records no classes, and such images have the class "".

    Raises:
      UsageError: there is no such input, or none that can be used.
    """
    source: Source
    if input.startswith(RECORDS):
        pattern = input.removeprefix(RECORDS)
        storage.require_supported(pattern, "input")
        source = TFRecordSource(storage.absolute(pattern), records, labelled)
    elif input.startswith(TFDS):
        if not tfds_dir:
            raise UsageError(f"input {input}: where it lies is missing; set --tfds_dir")
        storage.require_supported(tfds_dir, "tfds_dir")
        folder_of_sets = storage.absolute(os.path.expanduser(tfds_dir))
        source = TfdsSource(input.removeprefix(TFDS), folder_of_sets, tfds, labelled)
    else:
        source = _open_path(input, folder, manifest, labelled=labelled)
    source.check()
    return source


def path_of(input: str, tfds_dir: str | None) -> str:
    """The path that an input of `open_source` is read from."""
    return str(tfds_dir) if input.startswith(TFDS) else input.removeprefix(RECORDS)


def _open_path(
    input: str, folder: FolderInput, manifest: ManifestInput, *, labelled: bool
) -> Source:
    storage.require_supported(input, "input")
    path = storage.absolute(input)
    if path.lower().endswith(SUFFIXES) and storage.is_file(path):
        return open_manifest(path, manifest, labelled=labelled)
    if storage.is_folder(path):
        if not labelled and not open_tree(path).folders("")[0]:
            return FlatFolderSource(path)
        return FolderSource(path, folder)
    if storage.is_file(path):
        raise UsageError(f"input {input}: neither a folder of class folders nor .csv or .jsonl")
    raise UsageError(f"input {input}: no such file or folder")


def read_image(ref: ImageRef) -> bytes:
    """The image file that a reference stands for.

    Raises:
      BadImage: its record is damaged; it is a large file and no image.
      OSError: as tripletmill.storage.
    """
    if ref.offset >= 0:
        return read_record_image(ref)
    if ref.size > LARGE:
        # A film or an archive among the images need not fit into memory.
        with storage.open_read(ref.path) as file:
            require_image(file.read(HEAD_BYTES))
    return storage.read(ref.path)
