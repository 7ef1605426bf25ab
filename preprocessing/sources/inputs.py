"""Opens the input of a job: a folder, a manifest, or records; on a local disk or in a bucket.

A source is cut into parts, small picklable values, so that workers can list them in parallel.
`list_part` yields every file of a part, either as an `ImageRef` or as `Rejected` with a reason.
"""

import dataclasses
import os

from preprocessing.sources.folders import FlatFolderSource, FolderInput, FolderSource
from preprocessing.sources.manifests import ManifestInput, open_manifest
from preprocessing.sources.references import ImageRef, Source
from preprocessing.sources.tfds import TfdsInput, TfdsSource
from preprocessing.sources.tfrecords import RecordsInput, TFRecordSource
from preprocessing.sources.tfrecords import read_image as read_record_image
from preprocessing.sources.trees import open_tree
from tripletmill.errors import UsageError
from tripletmill.formats.manifest_paths import SUFFIXES
from tripletmill.images import HEAD_BYTES, require_image
from tripletmill.storage import storage

RECORDS, TFDS = "tfrecord:", "tfds:"

LARGE_FILE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """How an input is read. Each option applies to one kind of input.

    Attributes:
      folder: how the folders of an input folder become classes and splits.
      manifest: names of the columns of a manifest.
      records: which features of tfrecord:PATTERN are read.
      tfds: which features of tfds:NAME are read.
      tfds_dir: folder in which the data sets of TensorFlow Datasets were prepared; needed for
        tfds:NAME.
    """

    folder: FolderInput = dataclasses.field(default_factory=FolderInput)
    manifest: ManifestInput = dataclasses.field(default_factory=ManifestInput)
    records: RecordsInput = dataclasses.field(default_factory=RecordsInput)
    tfds: TfdsInput = dataclasses.field(default_factory=TfdsInput)
    tfds_dir: str | None = None


def open_source(
    input: str, options: InputOptions = InputOptions(), *, labelled: bool = True
) -> Source:
    """Opens an input.

    Args:
      input: a folder; a file whose name ends in .csv or .jsonl; tfrecord:PATTERN; or
        tfds:NAME[/CONFIG][:VERSION].
      options: how the input is read.
      labelled: whether every image must have a class. If not, a folder may have no class folders,
        a manifest or records may have no classes, and the class of such an image is "".

    Raises:
      UsageError: the input does not exist or cannot be used.
    """
    source: Source
    if input.startswith(RECORDS):
        pattern = input.removeprefix(RECORDS)
        storage.require_supported(pattern, "input")
        source = TFRecordSource(storage.absolute(pattern), options.records, labelled)
    elif input.startswith(TFDS):
        if not options.tfds_dir:
            raise UsageError(f"input {input}: where it lies is missing; set --tfds_dir")
        storage.require_supported(options.tfds_dir, "tfds_dir")
        tfds_dir = storage.absolute(os.path.expanduser(options.tfds_dir))
        source = TfdsSource(input.removeprefix(TFDS), tfds_dir, options.tfds, labelled)
    else:
        source = _open_path(input, options, labelled=labelled)
    source.check()
    return source


def path_of(input: str, options: InputOptions) -> str:
    """Returns the path that an input of `open_source` is read from."""
    return str(options.tfds_dir) if input.startswith(TFDS) else input.removeprefix(RECORDS)


def _open_path(input: str, options: InputOptions, *, labelled: bool) -> Source:
    storage.require_supported(input, "input")
    path = storage.absolute(input)
    if path.lower().endswith(SUFFIXES) and storage.is_file(path):
        return open_manifest(path, options.manifest, labelled=labelled)
    if storage.is_folder(path):
        if not labelled and not open_tree(path).folders("")[0]:
            return FlatFolderSource(path)
        return FolderSource(path, options.folder)
    if storage.is_file(path):
        raise UsageError(f"input {input}: neither a folder of class folders nor .csv or .jsonl")
    raise UsageError(f"input {input}: no such file or folder")


def read_image(ref: ImageRef) -> bytes:
    """Returns the image file that a reference stands for.

    Raises:
      BadImage: the record of the image is damaged, or a large file is not an image.
      OSError: as in tripletmill.storage.
    """
    if ref.offset >= 0:
        return read_record_image(ref)
    if ref.size > LARGE_FILE_BYTES:
        # A large file may be a film or an archive, which need not fit into memory.
        with storage.open_read(ref.path) as file:
            require_image(file.read(HEAD_BYTES))
    return storage.read(ref.path)
