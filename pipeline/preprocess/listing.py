"""Lists every file of the input, and assigns each class to a split. No image is read."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from pipeline.beam.job_settings import JobSettings
from pipeline.beam.outputs import inspect_output
from pipeline.preprocess.repeated import find_repeated, is_among, partitioned
from pipeline.preprocess.settings import Job
from preprocessing.sources.manifests import ManifestSource
from preprocessing.sources.references import ImageRef, Rejected, Source
from preprocessing.writing import duplicates
from preprocessing.writing.claim import Claim, work_folder
from preprocessing.writing.commit import rejected_lines
from preprocessing.writing.plan import ClassSummary, Listing, add_up, make_listing, summarize
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.storage import storage

FILES_PER_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class FileChunk:
    """Some files of the input.

    Each element of a pipeline costs Beam more than an image reference, so the steps pass chunks of
    files on to each other.
    """

    images: Sequence[ImageRef] = ()
    rejected: Sequence[Rejected] = ()


@beam.ptransform_fn
def list_files(pipeline: beam.Pipeline, source: Source) -> beam.PCollection:
    """Lists every file of a source, in chunks, without reading any of them.

    Source ids tell images apart. If a feature of the records gives the source ids, and repeats one
    of them, the step raises UsageError.
    """
    chunks = (
        pipeline
        | "Input" >> beam.Create([source])
        | "Parts" >> beam.FlatMap(_parts)
        | "SpreadParts" >> beam.Reshuffle()
        | "ListPart" >> beam.FlatMap(_list_part)
    )
    if source.named_by is None:
        return chunks
    hashes = chunks | "Names" >> beam.FlatMap(lambda chunk: partitioned(_hashes(chunk)))
    repeated = beam.pvalue.AsSingleton(hashes | "EqualNames" >> find_repeated())
    return chunks | "RequireUnique" >> beam.Map(_require_unique, repeated, source.named_by)


# The source is Any, not Source: Beam checks annotations, and cannot check a protocol with
# attributes.
def _parts(source: Any) -> Iterator[tuple[Any, Any]]:
    listed_source = source.without_parts() if isinstance(source, ManifestSource) else source
    for part in source.parts():
        yield listed_source, part


def _list_part(source_and_part: tuple[Any, Any]) -> Iterator[FileChunk]:
    source, part = source_and_part
    files = source.list_part(part)
    while chunk := tuple(itertools.islice(files, FILES_PER_CHUNK)):
        yield FileChunk(
            images=tuple(file for file in chunk if isinstance(file, ImageRef)),
            rejected=tuple(file for file in chunk if isinstance(file, Rejected)),
        )


def _hashes(chunk: FileChunk) -> np.ndarray:
    """Returns a uint64 hash of each source id."""
    hashes = [hashlib.blake2b(r.source_id.encode(), digest_size=8).digest() for r in chunk.images]
    return np.frombuffer(b"".join(hashes), np.uint64)


def _require_unique(chunk: FileChunk, repeated: np.ndarray, named_by: str) -> FileChunk:
    for place in np.flatnonzero(is_among(_hashes(chunk), repeated)):
        raise UsageError(
            f"feature {named_by!r}: {len(repeated):,} names occur more than once, such as"
            f" {chunk.images[int(place)].source_id}; each image needs its own source id"
        )
    return chunk


@dataclasses.dataclass(frozen=True)
class ListedInput:
    """What a job knows when all files are listed.

    Attributes:
      listing: summary of the input.
      finished: whether the output folder already holds the data set, so that nothing is left to do.
      known_duplicates: exact duplicates that an earlier, unfinished job found among these files;
        None if there was no such job.
    """

    listing: Listing
    finished: bool
    known_duplicates: Sequence[duplicates.DuplicateGroup] | None


@beam.ptransform_fn
def summarize_input(chunks: beam.PCollection, job: Job) -> beam.PCollection:
    """Sums up chunks, and assigns classes to splits. The result is one `ListedInput`.

    The step raises UsageError if too many images cannot be used, or if the output folder holds a
    data set of other images, finished or not.
    """
    rejected = chunks | "Rejected" >> beam.FlatMap(lambda chunk: chunk.rejected)
    return (
        chunks
        | "Summarize" >> beam.FlatMap(_summaries)
        | "SumClasses" >> beam.CombinePerKey(add_up)
        | "AllClasses" >> beam.combiners.ToDict()
        | "MakeListing" >> beam.Map(_listed_input, beam.pvalue.AsIter(rejected), job=job)
    )


def _summaries(chunk: FileChunk) -> Iterable[tuple[str, ClassSummary]]:
    return summarize((*chunk.images, *chunk.rejected)).items()


def _listed_input(
    classes: Mapping[str, ClassSummary], rejected: Iterable[Rejected], job: Job
) -> ListedInput:
    listing = make_listing(classes, job.splits)
    check_num_lost(listing.total, rejected, job)
    state = inspect_output(job, fingerprint=listing.fingerprint, newest=listing.total.newest)
    known = None if state.finished else _known_duplicates(state.unfinished_plan, listing, job)
    return ListedInput(listing, finished=state.finished, known_duplicates=known)


def check_num_lost(total: ClassSummary, rejected: Iterable[Rejected], job: JobSettings) -> None:
    """Raises UsageError if listing alone shows that too many images cannot be used.

    Args:
      total: summary of all images.
      rejected: all files that listing leaves out. They are written to the work folder before the
        error is raised.
      job: settings of the job.
    """
    num_listed = total.count + total.lost
    if total.lost <= job.max_rejected_share * num_listed:
        return
    # The output folder may hold the rejected.jsonl of a finished output, which must stay.
    path = storage.join(work_folder(job.output), index.REJECTED_FILE)
    storage.make_folder(work_folder(job.output))
    storage.write_file(path, rejected_lines(rejected))
    raise UsageError(
        f"{total.lost} of {num_listed} images in the input cannot be used (at most"
        f" {job.max_rejected_share:.0%} may be), one of them: {total.example}; see {path}"
    )


def _known_duplicates(
    unfinished_plan: Mapping[str, Any] | None, listing: Listing, job: Job
) -> list[duplicates.DuplicateGroup] | None:
    if unfinished_plan is None or unfinished_plan["versions"] != listing.versions:
        return None
    folder = Claim(job.output, unfinished_plan).folder
    try:
        return duplicates.read_groups(storage.read(storage.join(folder, index.DUPLICATES_FILE)))
    except FileNotFoundError:
        return None


def assign_splits(chunk: FileChunk, listed_input: ListedInput) -> Iterator[FileChunk]:
    """Gives each image its split. If the output is already finished, nothing comes out."""
    if not listed_input.finished:
        images = tuple(listed_input.listing.with_split(ref) for ref in chunk.images)
        yield FileChunk(images, chunk.rejected)
