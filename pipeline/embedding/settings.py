"""The settings of an embedding job, and the kind of output that it writes: embeddings."""

import dataclasses
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.beam.job_settings import JobSettings, OutputKind
from preprocessing.writing.commit import remove_output
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats import embeddings
from tripletmill.formats.index import REJECTED_FILE
from tripletmill.formats.model_card import ModelCard
from tripletmill.images import encoder_versions

RECORDS, IMAGES = "records", "images"  # kinds of input
SHARDS = r"embeddings-\d+-of-\d+\.parquet"  # pattern of the names of shards
# Packages that provide TensorFlow.
TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly")


def _read(output: str) -> Mapping[str, Any]:
    info = embeddings.load_info(output)
    return {"settings": info.settings, "input_fingerprint": info.input["fingerprint"]}


EMBEDDINGS = OutputKind(
    noun="embeddings",
    noun_with_article="embeddings",
    info_file=embeddings.INFO_FILE,
    read=_read,
    remove=lambda output, settings: remove_output(
        output, embeddings.INFO_FILE, REJECTED_FILE, shards=SHARDS
    ),
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
    packages = (p for name in TENSORFLOW for p in importlib.metadata.distributions(name=name))
    tensorflow = next((package.version for package in packages), "unknown")
    encoders = encoder_versions() if kind == IMAGES else {}
    return {**encoders, "pyarrow": pa.__version__, "tensorflow": tensorflow}
