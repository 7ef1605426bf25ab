"""Finds exact duplicates, and leaves out those that the policy of the job removes."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import numpy as np

from pipeline.preprocess.listing import FileChunk, ListedInput
from pipeline.preprocess.repeated import find_repeated, is_among, partitioned
from pipeline.preprocess.settings import Job
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing import duplicates
from preprocessing.writing.claim import work_folder
from preprocessing.writing.duplicates import Copy, DuplicateGroup
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.storage import storage

NO_HASH = 0  # in place of the hash of an image that has no duplicate


@dataclasses.dataclass(frozen=True)
class DuplicateDecision:
    """The exact duplicates of the input, and what happens to them.

    Attributes:
      groups: all groups of equal images, sorted by the first source id.
      reasons: why an image is left out, by source id.
      copies: source ids of the images that stay although an equal image stays too.
    """

    groups: Sequence[DuplicateGroup]
    reasons: Mapping[str, str]
    copies: frozenset[str]


@beam.ptransform_fn
def deduplicate(
    chunks: beam.PCollection, job: Job, listed_input: beam.PCollection
) -> tuple[beam.PCollection, beam.PCollection]:
    """Finds images whose files are equal; `preprocessing.writing.duplicates` says how.

    The results are the chunks, in which the copies that are left out are now among the rejected
    files, and one `DuplicateDecision`. Hashes are compared in arrays, so that only the references
    of likely copies are shuffled.
    """
    listed = beam.pvalue.AsSingleton(listed_input)
    sizes = (
        chunks
        | "Sizes" >> beam.FlatMap(_sizes, listed_input=listed)
        | "EqualSizes" >> find_repeated()
    )
    hashed = chunks | "HashMiddles" >> beam.Map(
        _hash_middles, beam.pvalue.AsSingleton(sizes), listed_input=listed, job=job
    )
    hashes = hashed | "Hashes" >> beam.FlatMap(_hashes) | "EqualHashes" >> find_repeated()
    new_groups = (
        hashed
        | "LikelyCopies" >> beam.FlatMap(_likely_copies, beam.pvalue.AsSingleton(hashes))
        | "SpreadCopies" >> beam.Reshuffle()
        | "HashWhole" >> beam.FlatMap(_by_content)
        | "EqualContents" >> beam.GroupByKey()
        | "Decide" >> beam.FlatMap(_decide, policy=job.duplicates)
    )
    known_groups = listed_input | "KnownCopies" >> beam.FlatMap(
        lambda listed_input: listed_input.known_duplicates or ()
    )
    decision = (
        (new_groups, known_groups)
        | "AllCopies" >> beam.Flatten()
        | "ListCopies" >> beam.combiners.ToList()
        | "Decision" >> beam.Map(decide_all, job=job)
    )
    kept = chunks | "LeaveOutCopies" >> beam.Map(
        leave_out_copies, decision=beam.pvalue.AsSingleton(decision)
    )
    return kept, decision


def _sizes(chunk: FileChunk, listed_input: ListedInput) -> Iterator[tuple[int, np.ndarray]]:
    if listed_input.known_duplicates is None:
        yield from partitioned(np.array([r.size for r in chunk.images if not r.md5], np.uint64))


def _hash_middles(
    chunk: FileChunk, repeated_sizes: np.ndarray, listed_input: ListedInput, job: Job
) -> tuple[FileChunk, np.ndarray]:
    """Returns the chunk and a hash for each image: [n] uint64.

    A file whose size no other file has is not read, and its hash is NO_HASH.
    """
    hashes = np.full(len(chunk.images), NO_HASH, np.uint64)
    if listed_input.known_duplicates is None:
        sizes = np.array([ref.size for ref in chunk.images], np.uint64)
        size_is_repeated = is_among(sizes, repeated_sizes)
        to_hash = [i for i, ref in enumerate(chunk.images) if ref.md5 or size_is_repeated[i]]
        values = _middle_hashes([chunk.images[i] for i in to_hash], job)
        hashes[to_hash] = [NO_HASH if value is None else value for value in values]
    return chunk, hashes


def _middle_hashes(refs: Sequence[ImageRef], job: Job) -> list[int | None]:
    """Returns the hash of each file; None for a file that cannot be read."""
    # Threads help only where a bucket must be asked. They are slower than a local disk, and a known
    # checksum needs no reading.
    if all(ref.md5 or not storage.is_bucket(ref.path) for ref in refs):
        return [duplicates.middle_hash(ref) for ref in refs]
    with ThreadPoolExecutor(job.threads_here) as pool:
        return [*pool.map(duplicates.middle_hash, refs)]


def _hashes(chunk_and_hashes: tuple[FileChunk, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    _, hashes = chunk_and_hashes
    yield from partitioned(hashes[hashes != NO_HASH])


def _likely_copies(
    chunk_and_hashes: tuple[FileChunk, np.ndarray], repeated_hashes: np.ndarray
) -> Iterator[ImageRef]:
    chunk, hashes = chunk_and_hashes
    for i in np.flatnonzero(is_among(hashes, repeated_hashes)):
        yield chunk.images[int(i)]


def _by_content(ref: ImageRef) -> Iterator[tuple[str, Copy]]:
    md5 = duplicates.full_md5(ref)
    if md5 is not None:
        yield f"{md5}:{ref.size}", Copy(ref.source_id, ref.class_name, ref.split or "")


def _decide(
    content_and_copies: tuple[str, Iterable[Copy]], policy: str
) -> Iterator[DuplicateGroup]:
    copies = list(content_and_copies[1])
    if len(copies) > 1:
        yield duplicates.decide(copies, policy)


def decide_all(groups: Sequence[DuplicateGroup], job: Job) -> DuplicateDecision:
    """Sums up the decisions on all groups.

    Raises:
      UsageError: there are duplicates, and the policy of the job is "error". The groups are
        written to the work folder.
    """
    groups = sorted(groups, key=lambda group: group.copies[0].source_id)
    if groups and job.duplicates == duplicates.ERROR:
        path = storage.join(work_folder(job.output), index.DUPLICATES_FILE)
        storage.make_folder(work_folder(job.output))
        storage.write_file(path, duplicates.write_groups(groups))
        counts = [f"{sum(g.kind == k for g in groups)} {k}" for k in duplicates.KINDS]
        first, second, *_ = groups[0].copies
        raise UsageError(
            f"{len(groups)} images occur more than once ({', '.join(counts)}), such as"
            f" {first.source_id} and {second.source_id}; see {path}, or set --duplicates=drop"
        )
    reasons = {c.source_id: duplicates.reason(g) for g in groups for c in g.copies if not c.kept}
    staying = [[copy.source_id for copy in group.copies if copy.kept] for group in groups]
    copies = frozenset(name for names in staying if len(names) > 1 for name in names)
    return DuplicateDecision(groups, reasons, copies)


def leave_out_copies(chunk: FileChunk, decision: DuplicateDecision) -> FileChunk:
    """Moves the images that the decision leaves out to the rejected files of the chunk."""
    images, rejected = [], list(chunk.rejected)
    for ref in chunk.images:
        reason = decision.reasons.get(ref.source_id)
        if reason is None:
            images.append(ref)
        else:
            rejected.append(Rejected(ref.source_id, ref.class_name, reason, lost=False))
    return FileChunk(tuple(images), tuple(rejected))
