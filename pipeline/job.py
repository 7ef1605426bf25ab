"""What every step of a preprocessing job knows, and what lies in its output."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from preprocessing import index, storage
from preprocessing.claim import read_plan, work_folder
from preprocessing.errors import UsageError
from preprocessing.images import ImageSettings, encoder_versions
from preprocessing.splits import SplitRule


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


def found_in(output: str) -> Mapping[str, Any] | None:
    """Settings and input fingerprint of the data set in an output, finished or not."""
    if index.is_finished(output):
        info = index.load_info(output)
        return {"settings": info.settings, "input_fingerprint": info.input_fingerprint}
    return read_plan(output)


def check_output(job: Job) -> None:
    """Sees that the folder is ours to write in, and that what lies there fits the settings."""
    if os.path.exists(job.output) and not os.path.isdir(job.output):
        raise UsageError(f"output {job.output}: not a folder")
    found = found_in(job.output)
    if found is None:
        # Killed between making the work folder and writing the plan, nothing else is there.
        if not storage.is_empty(job.output, but_for=index.WORK_FOLDER):
            raise UsageError(
                f"output {job.output}: not empty, and no data set of tripletmill; choose another"
            )
    elif not job.overwrite:
        different = _differences(found["settings"], job.settings())
        if different:
            raise UsageError(
                f"output {job.output}: holds a data set with other settings"
                f" ({'; '.join(different)}); choose another --output, or --overwrite it"
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key} {before}, now {now}")
    return found


def lock(job: Job) -> contextlib.AbstractContextManager[None]:
    """Keeps a second job of this machine out of an unfinished data set on a local disk.

    A finished one is not written to; in a bucket, jobs are kept apart by `Claim`.
    """
    if storage.is_bucket(job.output) or (index.is_finished(job.output) and not job.overwrite):
        return contextlib.nullcontext()
    storage.make_folder(work_folder(job.output))
    path = storage.join(work_folder(job.output), "lock")
    return storage.exclusive(path, f"output {job.output}")
