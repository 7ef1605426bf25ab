"""List: every file of the input, and the split of every class. No image is read."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from pipeline.beam.outputs import look
from pipeline.preprocess.repeated import Repeated, is_among, partitioned
from pipeline.preprocess.settings import DATA_SET, Job
from preprocessing.sources.manifests import ManifestSource
from preprocessing.sources.references import ImageRef, Rejected, Source
from preprocessing.writing import duplicates
from preprocessing.writing.claim import Claim, work_folder
from preprocessing.writing.commit import rejected_lines
from preprocessing.writing.plan import ClassSummary, Listing, add, make_listing, summarize
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.storage import storage

FILES_A_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some files. Beam moves chunks, since each element costs it more than an image reference."""

    images: Sequence[ImageRef] = ()
    rejected: Sequence[Rejected] = ()


class List(beam.PTransform):
    """Lists every file of a source, in chunks; reads none of them.

    Where source ids come from a feature that repeats one, it stops with an error: images are told
    apart by them.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        chunks = (
            pipeline
            | "Input" >> beam.Create([self.source])
            | "Parts" >> beam.FlatMap(_parts)
            | "SpreadParts" >> beam.Reshuffle()
            | "ListPart" >> beam.FlatMap(_list_part)
        )
        if self.source.named_by is None:
            return chunks
        repeated = chunks | "Names" >> beam.FlatMap(_names) | "EqualNames" >> Repeated()
        return chunks | "RequireUnique" >> beam.Map(
            _require_unique, beam.pvalue.AsSingleton(repeated), named_by=self.source.named_by
        )


# Any, not Source: Beam checks annotations, and cannot check a protocol with attributes.
def _parts(source: Any) -> Iterator[tuple[Any, Any]]:
    alone = source.without_parts() if isinstance(source, ManifestSource) else source
    for part in source.parts():
        yield alone, part


def _list_part(item: tuple[Any, Any]) -> Iterator[Chunk]:
    source, part = item
    files = source.list_part(part)
    while some := tuple(itertools.islice(files, FILES_A_CHUNK)):
        yield Chunk(
            images=tuple(file for file in some if isinstance(file, ImageRef)),
            rejected=tuple(file for file in some if isinstance(file, Rejected)),
        )


def _hashed(chunk: Chunk) -> np.ndarray:
    hashes = [hashlib.blake2b(r.source_id.encode(), digest_size=8).digest() for r in chunk.images]
    return np.frombuffer(b"".join(hashes), np.uint64)


def _names(chunk: Chunk) -> Iterator[tuple[int, np.ndarray]]:
    yield from partitioned(_hashed(chunk))


def _require_unique(chunk: Chunk, repeated: np.ndarray, named_by: str) -> Chunk:
    for place in np.flatnonzero(is_among(_hashed(chunk), repeated)):
        raise UsageError(
            f"feature {named_by!r}: {len(repeated):,} names are there more than once, such as"
            f" {chunk.images[int(place)].source_id}; a source id must be of one image alone"
        )
    return chunk


@dataclasses.dataclass(frozen=True)
class ListedInput:
    """Where a job begins.

    Attributes:
      listing: what was listed.
      finished: whether the output holds the data set already, so that nothing is to be done.
      known: exact duplicates, if they were found by an earlier attempt on the same files.
    """

    listing: Listing
    finished: bool
    known: Sequence[duplicates.DuplicateGroup] | None


class MakeListing(beam.PTransform):
    """Sums up chunks and assigns splits to classes: one `ListedInput`.

    Where the output holds a data set from other images, finished or not, or where too many images
    cannot be used, it stops with an error.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def expand(self, chunks: beam.PCollection) -> beam.PCollection:
        rejected = chunks | "Rejected" >> beam.FlatMap(lambda chunk: chunk.rejected)
        return (
            chunks
            | "Summarize" >> beam.FlatMap(_summaries)
            | "SumClasses" >> beam.CombinePerKey(_sum)
            | "AllClasses" >> beam.combiners.ToDict()
            | "MakeListing" >> beam.Map(_start, beam.pvalue.AsIter(rejected), job=self.job)
        )


def _summaries(chunk: Chunk) -> Iterable[tuple[str, ClassSummary]]:
    return summarize((*chunk.images, *chunk.rejected)).items()


def _sum(summaries: Iterable[ClassSummary]) -> ClassSummary:
    total = ClassSummary()
    for summary in summaries:
        total = add(total, summary)
    return total


def _start(
    classes: Mapping[str, ClassSummary], rejected: Iterable[Rejected], job: Job
) -> ListedInput:
    listing = make_listing(classes, job.splits)
    check_lost(
        rejected,
        num_images=listing.num_images,
        num_lost=listing.num_lost,
        max_share=job.max_rejected_share,
        example=listing.example,
        output=job.output,
    )
    found = look(
        DATA_SET,
        job.output,
        settings=job.settings(),
        fingerprint=listing.fingerprint,
        newest=listing.newest,
        overwrite=job.overwrite,
    )
    known = None if found.finished else _known(found.unfinished, listing, job)
    return ListedInput(listing, finished=found.finished, known=known)


def check_lost(
    rejected: Iterable[Rejected],
    *,
    num_images: int,
    num_lost: int,
    max_share: float,
    example: str,
    output: str,
) -> None:
    """Raises UsageError where too many images cannot be used, as listing knows already.

    Args:
      rejected: all that listing leaves out.
      num_images: that can be used.
      num_lost: that cannot.
      max_share: of all, that may be, 0 to 1.
      example: why, for one of them.
      output: of the job.
    """
    total = num_images + num_lost
    if num_lost <= max_share * total:
        return
    # Beside the output's own: there may be a finished one.
    path = storage.join(work_folder(output), index.REJECTED_FILE)
    storage.make_folder(work_folder(output))
    storage.write_file(path, rejected_lines(rejected))
    raise UsageError(
        f"{num_lost} of {total} images in the input cannot be used (at most {max_share:.0%} may"
        f" be), one of them: {example}; see {path}"
    )


class AssignSplits(beam.PTransform):
    """Gives each image its split; nothing comes out where nothing is to be done."""

    def __init__(self, start: beam.PCollection) -> None:
        super().__init__()
        self.start = start

    def expand(self, chunks: beam.PCollection) -> beam.PCollection:
        return chunks | "AssignSplits" >> beam.FlatMap(
            _assign_splits, start=beam.pvalue.AsSingleton(self.start)
        )


def _assign_splits(chunk: Chunk, start: ListedInput) -> Iterator[Chunk]:
    if not start.finished:
        yield Chunk(tuple(start.listing.with_split(ref) for ref in chunk.images), chunk.rejected)


def _known(
    found: Mapping[str, Any] | None, listing: Listing, job: Job
) -> list[duplicates.DuplicateGroup] | None:
    if found is None or found["versions"] != listing.versions:
        return None
    path = storage.join(Claim(job.output, found).folder, index.DUPLICATES_FILE)
    try:
        return duplicates.read_groups(storage.read(path))
    except FileNotFoundError:
        return None
