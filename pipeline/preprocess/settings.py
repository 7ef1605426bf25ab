"""The settings of a preprocessing job, and the kind of output that it writes: a data set."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.beam.job_settings import DATA_SET_NOUN, JobSettings, OutputKind
from preprocessing.splits import SplitRule
from preprocessing.writing import duplicates
from preprocessing.writing.commit import remove_data_set
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats import index
from tripletmill.images import ImageSettings, encoder_versions


def _read(output: str) -> Mapping[str, Any]:
    info = index.load_info(output)
    return {"settings": info.settings, "input_fingerprint": info.input_fingerprint}


DATA_SET = OutputKind(
    noun=DATA_SET_NOUN,
    noun_with_article="a data set",
    info_file=index.INFO_FILE,
    read=_read,
    remove=lambda output, settings: remove_data_set(output, settings["name"]),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(JobSettings):
    """The settings of a preprocessing job; see `preprocess` for the fields that are not here.

    Attributes:
      columns: names of the extra columns that the images of the source have.
      group: the column that says which images belong together; None if there is none.
      image: settings of the canonical JPEGs.

    Raises:
      UsageError: a value is out of range or of the wrong kind.
    """

    gin_name: ClassVar[str] = "preprocess"
    output_kind: ClassVar[OutputKind] = DATA_SET
    verb: ClassVar[str] = "preprocessed"

    columns: tuple[str, ...]
    group: str | None
    name: str
    image: ImageSettings
    splits: SplitRule
    duplicates: str
    min_images: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.gin_name, min_images=self.min_images)
        if self.duplicates not in duplicates.POLICIES:
            policies = ", ".join(duplicates.POLICIES)
            raise UsageError(f"duplicates: {policies}, not {self.duplicates!r}")
        if isinstance(self.splits, type) or not isinstance(self.splits, SplitRule):
            raise UsageError(
                "preprocess.splits: @HashSplits(), @SortedSplits() or @QueryGallery(), not"
                f" {self.splits!r}"
            )

    def settings(self) -> dict[str, Any]:
        content = {
            "name": self.name,
            "image": dataclasses.asdict(self.image),
            "splits": _rule_values(self.splits),
            "duplicates": self.duplicates,
            "min_images": self.min_images,
            "images_per_shard": self.images_per_shard,
            "columns": list(self.columns),
            "group": self.group,
            "versions": {**encoder_versions(), "pyarrow": pa.__version__},
        }
        return json.loads(json.dumps(content))


def _rule_values(rule: Any) -> dict[str, Any]:
    """Returns the name and the values of a rule for splits, and those of the rules inside it."""
    fields = dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()
    values = {field.name: getattr(rule, field.name) for field in fields}
    nested = {k: _rule_values(v) if isinstance(v, SplitRule) else v for k, v in values.items()}
    return {"rule": type(rule).__name__, **nested}
