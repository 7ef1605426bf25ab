"""Whether a job may write into its output folder, and what an earlier job left there."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from pipeline.beam.job_settings import DATA_SET_NOUN, JobSettings
from preprocessing.writing.claim import Claim, plan_version, read_plan, work_folder
from preprocessing.writing.commit import remove_work
from tripletmill.errors import UsageError
from tripletmill.formats import manifest_paths
from tripletmill.formats.index import REJECTED_FILE, WORK_FOLDER
from tripletmill.storage import storage


def check_apart(what: str, path: str, output: str) -> None:
    """Raises UsageError if the output folder is the input of a job, or is inside the input.

    Args:
      what: name of the input for the message, such as "data".
      path: the input that the job reads: a folder, a file or a pattern.
      output: the output folder.
    """
    if path.lower().endswith(manifest_paths.SUFFIXES):
        return  # The job reads the manifest, but not the folder that contains it.
    is_folder = storage.is_folder(path)
    read = _without_links(path if is_folder else path.rpartition("/")[0] or ".")
    written = _without_links(output)
    if written == read or (is_folder and written.startswith(read.rstrip("/") + "/")):
        raise UsageError(f"output {output}: lies in the {what}; choose another folder")


def _without_links(path: str) -> str:
    """Returns the path that is the same for every name of a folder."""
    return storage.absolute(path) if storage.is_bucket(path) else os.path.realpath(path)


def check_output(job: JobSettings) -> None:
    """Raises UsageError if the output folder holds other files, or the result of other settings."""
    kind, output = job.output_kind, job.output
    if os.path.exists(output) and not os.path.isdir(output):
        raise UsageError(f"output {output}: not a folder")
    existing = kind.description_in(output)
    if existing is None:
        # A job that was killed before it wrote its plan leaves an empty work folder.
        if not storage.is_empty(output, but_for=WORK_FOLDER) or read_plan(output) is not None:
            raise UsageError(
                f"output {output}: not empty, and no {kind.noun} of tripletmill; choose another"
            )
    elif not job.overwrite:
        _require_same_settings(job, existing)


def _require_same_settings(job: JobSettings, existing: Mapping[str, Any]) -> None:
    different = _differences(existing["settings"], job.settings())
    if different:
        raise UsageError(
            f"output {job.output}: holds {job.output_kind.noun_with_article} with other settings"
            f" ({'; '.join(different)}); choose another --output, or --overwrite it"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    different = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            different += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            different.append(f"{prefix}{key} {before}, now {now}")
    return different


def lock_output(job: JobSettings) -> contextlib.AbstractContextManager[None]:
    """Keeps a second job on this machine out of an output folder on a local disk.

    A finished output needs no lock, because the job does not write to it. In a bucket, `Claim`
    keeps two jobs apart.
    """
    finished = job.output_kind.is_finished(job.output)
    if storage.is_bucket(job.output) or (finished and not job.overwrite):
        return contextlib.nullcontext()
    storage.make_folder(work_folder(job.output))
    return _exclusive(job.output)


def _exclusive(output: str) -> contextlib.AbstractContextManager[None]:
    return storage.exclusive(storage.join(work_folder(output), "lock"), f"output {output}")


@dataclasses.dataclass(frozen=True)
class OutputState:
    """What an earlier job with the same settings and the same input left in the output folder.

    Attributes:
      finished: whether the whole output is there, so that nothing is left to do.
      unfinished_plan: the plan of an unfinished job; None if there is no such plan.
    """

    finished: bool
    unfinished_plan: Mapping[str, Any] | None


def inspect_output(job: JobSettings, *, fingerprint: str, newest: int) -> OutputState:
    """Compares what is in the output folder with what the job is to write.

    Args:
      job: settings of the job.
      fingerprint: fingerprint of the input.
      newest: latest modification time of an input file, nanoseconds.

    Raises:
      UsageError: the folder holds an output of another input, and the job may not replace it.
    """
    kind, output = job.output_kind, job.output
    existing, finished = kind.description_in(output), kind.is_finished(output)
    same = (
        existing is not None
        and existing["settings"] == job.settings()
        and existing["input_fingerprint"] == fingerprint
    )
    if finished and same:
        same = newest <= storage.stat(storage.join(output, kind.info_file)).modified
    if existing is not None and not same and not job.overwrite:
        # Another job may have begun there since `check_output`.
        _require_same_settings(job, existing)
        raise UsageError(
            f"output {output}: holds {kind.noun_with_article} made from other images, or from"
            " images that have changed since; choose another --output, or --overwrite it"
        )
    if finished and same and not job.overwrite:
        _remove_leftovers(output)
        return OutputState(finished=True, unfinished_plan=None)
    return OutputState(finished=False, unfinished_plan=existing if same and not finished else None)


def _remove_leftovers(output: str) -> None:
    """Removes the work folder of a finished output, unless another job is about to replace it."""
    if storage.is_bucket(output):
        remove_work(output)
    elif storage.is_folder(work_folder(output)):
        with contextlib.suppress(UsageError, OSError), _exclusive(output):
            remove_work(output)


def claim_output(
    job: JobSettings, *, fingerprint: str, versions: str, num_images: int, num_shards: int
) -> Claim:
    """Writes the plan file, and removes the earlier output unless it has the same plan.

    Args:
      job: settings of the job.
      fingerprint: fingerprint of the input.
      versions: fingerprint of the modification times of the input files.
      num_images: number of images to write.
      num_shards: number of output files.

    Raises:
      UsageError: another job has begun to write there.
    """
    kind, output = job.output_kind, job.output
    content = {
        "settings": job.settings(),
        "input_fingerprint": fingerprint,
        "versions": versions,
        "num_images": num_images,
        "num_shards": num_shards,
    }
    if kind.noun != DATA_SET_NOUN:
        content["noun"] = kind.noun
    claim = Claim(output, content)
    version = plan_version(output)
    existing = kind.description_in(output)
    claim.take(replaces=version)
    if existing is not None and (kind.is_finished(output) or existing != content):
        # The old output is removed only now, because only now this job is sure to replace it.
        kind.remove(output, existing["settings"])
    return claim


def left_out_line(num_rejected: int, output: str) -> str:
    """Returns the line of a job's summary about the files that are left out."""
    if not num_rejected:
        return "  left out: nothing"
    path = storage.join(output, REJECTED_FILE)
    return f"  left out: {num_rejected:,} files, each with its reason in {path}"
