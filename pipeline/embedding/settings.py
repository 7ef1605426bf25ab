"""The settings of an embedding job, and the kind of output that it writes: embeddings."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.beam.job_settings import JobSettings, OutputKind
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats import embeddings
from tripletmill.formats.index import REJECTED_FILE
from tripletmill.formats.model_card import ModelCard
from tripletmill.images import encoder_versions
from tripletmill.storage import storage

RECORDS, IMAGES = "records", "images"  # kinds of input
# Packages that provide TensorFlow.
TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly")


def _read(output: str) -> Mapping[str, Any]:
    info = embeddings.load_info(output)
    return {"settings": info.settings, "input_fingerprint": info.input["fingerprint"]}


def remove_shards(output: str, *, keep: set[str]) -> None:
    """Removes the shards of embeddings from a folder, except those that are named."""
    for info in storage.list_files(output):
        file = info.path.rpartition("/")[2]
        if re.fullmatch(r"embeddings-\d+-of-\d+\.parquet", file) and file not in keep:
            storage.remove(info.path)


def _remove(output: str, settings: Mapping[str, Any]) -> None:
    # The info file is removed first, so that a folder with an info file is always complete.
    for file in (embeddings.INFO_FILE, REJECTED_FILE):
        storage.remove(storage.join(output, file))
    remove_shards(output, keep=set())


EMBEDDINGS = OutputKind(
    noun="embeddings",
    noun_with_article="embeddings",
    info_file=embeddings.INFO_FILE,
    read=_read,
    remove=_remove,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(JobSettings):
    """The settings of an embedding job; see `embed` for the fields that are not here.

    Attributes:
      model: card of the exported model, with an absolute path.
      kind: RECORDS or IMAGES.
      versions: versions of the libraries that decide the bytes, where the job was started.

    Raises:
      UsageError: a value is out of range.
    """

    gin_name: ClassVar[str] = "embed"
    output_kind: ClassVar[OutputKind] = EMBEDDINGS
    verb: ClassVar[str] = "embedded"

    model: ModelCard
    kind: str
    batch_size: int
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.gin_name, batch_size=self.batch_size)

    def settings(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "model": self.model.fingerprint,
            "batch_size": self.batch_size,
            "versions": self.versions,
        }
        if self.kind == IMAGES:
            content["image"] = dataclasses.asdict(self.model.image)
            content["images_per_shard"] = self.images_per_shard
        return json.loads(json.dumps(content))

    def check_versions(self) -> None:
        """Raises UsageError on a worker whose libraries differ from those where the job started."""
        here = library_versions(self.kind)
        for name, version in self.versions.items():
            if here[name] != version:
                raise UsageError(
                    f"a worker has {name} {here[name]}, the job was started with {version};"
                    " install the same there"
                )


def library_versions(kind: str) -> dict[str, str]:
    """Returns the versions of the libraries that decide the bytes, without importing TensorFlow.

    Args:
      kind: RECORDS or IMAGES. Only the versions for IMAGES include the image encoders.

    Raises:
      UsageError: TensorFlow is missing.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            "TensorFlow is missing, which the exported model needs; pip install -e '.[cpu]', or"
            " gpu or tpu in place of cpu"
        )
    tensorflow = "unknown"
    for name in TENSORFLOW:
        try:
            tensorflow = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    encoders = encoder_versions() if kind == IMAGES else {}
    return {**encoders, "pyarrow": pa.__version__, "tensorflow": tensorflow}
