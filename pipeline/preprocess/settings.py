"""What every step of a preprocessing job knows, and what lies in its output."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.beam.outputs import DATA_SET_NOUN, OutputKind
from preprocessing.splits import SplitRule
from preprocessing.writing.commit import remove_data_set
from tripletmill.formats import index
from tripletmill.images import ImageSettings, encoder_versions


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know; see `preprocess` for the fields."""

    columns: tuple[str, ...]
    group: str | None
    output: str
    name: str
    image: ImageSettings
    splits: SplitRule
    duplicates: str
    min_images: int
    images_per_shard: int
    max_rejected_share: float
    threads: int | None
    overwrite: bool

    @property
    def threads_here(self) -> int:
        """Of the worker that asks: it may have other cores than where the job was started."""
        return self.threads or os.cpu_count() or 1

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the data set, besides the input."""
        content = {
            "name": self.name,
            "image": dataclasses.asdict(self.image),
            "splits": _rule(self.splits),
            "duplicates": self.duplicates,
            "min_images": self.min_images,
            "images_per_shard": self.images_per_shard,
            "columns": list(self.columns),
            "group": self.group,
            "versions": {**encoder_versions(), "pyarrow": pa.__version__},
        }
        return json.loads(json.dumps(content))


def _rule(rule: Any) -> dict[str, Any]:
    """A rule for splits by name and values, those that it holds included."""
    fields = dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()
    values = {field.name: getattr(rule, field.name) for field in fields}
    nested = {k: _rule(v) if isinstance(v, SplitRule) else v for k, v in values.items()}
    return {"rule": type(rule).__name__, **nested}


def _read(output: str) -> Mapping[str, Any]:
    info = index.load_info(output)
    return {"settings": info.settings, "input_fingerprint": info.input_fingerprint}


DATA_SET = OutputKind(
    noun=DATA_SET_NOUN,
    one="a data set",
    info_file=index.INFO_FILE,
    read=_read,
    remove=lambda output, settings: remove_data_set(output, settings["name"]),
)
