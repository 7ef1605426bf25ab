"""What every step of an embedding job knows, and what lies in its output."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.beam.outputs import OutputKind
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings
from tripletmill.formats.index import REJECTED_FILE
from tripletmill.formats.model_card import ModelCard
from tripletmill.images import encoder_versions
from tripletmill.storage import storage

RECORDS, IMAGES = "records", "images"  # kinds of input
TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly")  # its packages


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know; see `embed` for the fields."""

    model: ModelCard
    kind: str
    output: str
    batch_size: int
    images_per_shard: int
    max_rejected_share: float
    threads: int | None
    overwrite: bool
    versions: Mapping[str, str]

    @property
    def threads_here(self) -> int:
        """Of the worker that asks: it may have other cores than where the job was started."""
        return self.threads or os.cpu_count() or 1

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the embeddings, besides the input."""
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
        """Raises UsageError on a worker that would give other bytes than where the job began."""
        here = library_versions(self.kind)
        for name, version in self.versions.items():
            if here[name] != version:
                raise UsageError(
                    f"a worker has {name} {here[name]}, the job was started with {version};"
                    " install the same there"
                )


def library_versions(kind: str) -> dict[str, str]:
    """Versions of the libraries that decide the bytes, for an input of a kind.

    TensorFlow is not imported for this.

    Raises:
      UsageError: TensorFlow is missing.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            "TensorFlow is missing, which the exported model needs; pip install -e '.[cpu]', or"
            " gpu or tpu in place of cpu"
        )
    found = "unknown"
    for name in TENSORFLOW:
        try:
            found = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    encoders = encoder_versions() if kind == IMAGES else {}
    return {**encoders, "pyarrow": pa.__version__, "tensorflow": found}


def _read(output: str) -> Mapping[str, Any]:
    info = embeddings.load_info(output)
    return {"settings": info.settings, "input_fingerprint": info.input["fingerprint"]}


def remove_shards(output: str, *, keep: set[str]) -> None:
    """Removes all shards of embeddings but those that are named."""
    for info in storage.list_files(output):
        file = info.path.rpartition("/")[2]
        if re.fullmatch(r"embeddings-\d+-of-\d+\.parquet", file) and file not in keep:
            storage.remove(info.path)


def _remove(output: str, settings: Mapping[str, Any]) -> None:
    # The info goes first, so that embeddings are never half there.
    for file in (embeddings.INFO_FILE, REJECTED_FILE):
        storage.remove(storage.join(output, file))
    remove_shards(output, keep=set())


EMBEDDINGS = OutputKind(
    noun="embeddings",
    one="embeddings",
    info_file=embeddings.INFO_FILE,
    read=_read,
    remove=_remove,
)
