"""What lies in a job's output, and whether the job may write there."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam import runners
from pipeline.beam.progress import ShardProgress
from preprocessing.writing.claim import Claim, plan_version, read_plan, work_folder
from preprocessing.writing.commit import remove_work
from tripletmill.errors import UsageError
from tripletmill.formats import manifest_paths
from tripletmill.formats.index import WORK_FOLDER
from tripletmill.storage import storage

DATA_SET_NOUN = "data set"  # of a plan that does not say


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """What a job makes.

    Attributes:
      noun: what it is called; other plans than a data set's say it.
      one: the same, with an article where it takes one.
      info_file: the file that finishes it.
      read: settings and input fingerprint of a finished one, by its folder.
      remove: removes one with such settings from a folder, finished or not; the work folder stays.
    """

    noun: str
    one: str
    info_file: str
    read: Callable[[str], Mapping[str, Any]]
    remove: Callable[[str, Mapping[str, Any]], None]

    def is_finished(self, output: str) -> bool:
        """Whether an output holds a finished one."""
        return storage.is_file(storage.join(output, self.info_file))

    def found_in(self, output: str) -> Mapping[str, Any] | None:
        """Settings and input fingerprint of the one in an output, finished or not."""
        if self.is_finished(output):
            return self.read(output)
        plan = read_plan(output)
        return plan if plan is not None and plan.get("noun", DATA_SET_NOUN) == self.noun else None


def check_apart(what: str, path: str, output: str) -> None:
    """Raises UsageError for an output that lies in what the job reads, or would take its place."""
    if path.lower().endswith(manifest_paths.SUFFIXES):
        return  # the list's own folder is no input
    is_folder = storage.is_folder(path)
    read = _real(path if is_folder else path.rpartition("/")[0] or ".")
    written = _real(output)
    if written == read or (is_folder and written.startswith(read.rstrip("/") + "/")):
        raise UsageError(f"output {output}: lies in the {what}; choose a place outside of it")


def _real(path: str) -> str:
    """Without links, which can lead to one place by two names."""
    return storage.absolute(path) if storage.is_bucket(path) else os.path.realpath(path)


def check_output(
    kind: OutputKind, output: str, settings: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Raises UsageError for a folder that is not ours to write in, or holds other settings."""
    if os.path.exists(output) and not os.path.isdir(output):
        raise UsageError(f"output {output}: not a folder")
    found = kind.found_in(output)
    if found is None:
        # Killed between making the work folder and writing the plan, nothing else is there.
        if not storage.is_empty(output, but_for=WORK_FOLDER) or read_plan(output) is not None:
            raise UsageError(
                f"output {output}: not empty, and no {kind.noun} of tripletmill; choose another"
            )
    elif not overwrite:
        _require_same_settings(kind, output, found, settings)


def _require_same_settings(
    kind: OutputKind, output: str, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    different = _differences(found["settings"], settings)
    if different:
        raise UsageError(
            f"output {output}: holds {kind.one} with other settings"
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


def lock(
    kind: OutputKind, output: str, *, overwrite: bool
) -> contextlib.AbstractContextManager[None]:
    """Keeps a second job of this machine out of an unfinished output on a local disk.

    A finished one is not written to; in a bucket, jobs are kept apart by `Claim`.
    """
    if storage.is_bucket(output) or (kind.is_finished(output) and not overwrite):
        return contextlib.nullcontext()
    storage.make_folder(work_folder(output))
    return _exclusive(output)


def _exclusive(output: str) -> contextlib.AbstractContextManager[None]:
    return storage.exclusive(storage.join(work_folder(output), "lock"), f"output {output}")


@contextlib.contextmanager
def pipeline_into(
    kind: OutputKind,
    output: str,
    *,
    overwrite: bool,
    done: str,
    runner: PipelineRunner,
    options: PipelineOptions,
) -> Iterator[beam.Pipeline]:
    """`runners.pipeline_on`, with the output locked and progress shown if the job ends here.

    Args:
      kind: what the job makes.
      output: where.
      overwrite: whether it may be made anew.
      done: what the job does with an image, such as "embedded".
      runner: Beam runner.
      options: Beam options.
    """
    with contextlib.ExitStack() as stack:
        if runners.instead_of_output(options) is None:
            stack.enter_context(lock(kind, output, overwrite=overwrite))
            stack.enter_context(ShardProgress(output, done))
        yield stack.enter_context(runners.pipeline_on(runner, options))


@dataclasses.dataclass(frozen=True)
class Found:
    """What a job finds in its output.

    Attributes:
      finished: whether all is made already, so that nothing is to be done.
      unfinished: the plan of an earlier attempt at the same, if there is one.
    """

    finished: bool
    unfinished: Mapping[str, Any] | None


def look(
    kind: OutputKind,
    output: str,
    *,
    settings: Mapping[str, Any],
    fingerprint: str,
    newest: int,
    overwrite: bool,
) -> Found:
    """Compares what lies in an output with what is to be made.

    Args:
      kind: what is to be made.
      output: where.
      settings: what decides its bytes, besides the input.
      fingerprint: of the input.
      newest: latest time of a file of the input, nanoseconds.
      overwrite: whether anything may be replaced.

    Raises:
      UsageError: it holds one of another input, and this may not be replaced.
    """
    found, finished = kind.found_in(output), kind.is_finished(output)
    same = (
        found is not None
        and found["settings"] == settings
        and found["input_fingerprint"] == fingerprint
    )
    if finished and same:
        same = newest <= storage.stat(storage.join(output, kind.info_file)).modified
    if found is not None and not same and not overwrite:
        _require_same_settings(kind, output, found, settings)  # of a job begun since `check_output`
        raise UsageError(
            f"output {output}: holds {kind.one} made from other images, or from images that"
            " have changed since; choose another --output, or --overwrite it"
        )
    if finished and same and not overwrite:
        _remove_leftovers(output)
        return Found(finished=True, unfinished=None)
    return Found(finished=False, unfinished=found if same and not finished else None)


def _remove_leftovers(output: str) -> None:
    """Of the job that has finished; not the work of one that is about to make all anew."""
    if storage.is_bucket(output):
        remove_work(output)
    elif storage.is_folder(work_folder(output)):
        with contextlib.suppress(UsageError, OSError), _exclusive(output):
            remove_work(output)


def take(kind: OutputKind, claim: Claim) -> None:
    """Makes an output this job's; what it held before is removed, unless it is of the same plan.

    Raises:
      UsageError: another job has begun there.
    """
    output = claim.output
    version = plan_version(output)
    found = kind.found_in(output)
    claim.take(replaces=version)
    if found is not None and (kind.is_finished(output) or found != claim.content):
        # Only now, when it is sure that there will be another.
        kind.remove(output, found["settings"])
