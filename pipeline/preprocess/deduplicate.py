"""Deduplicate: exact duplicates found, and those left out that the policy says."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import numpy as np

from pipeline.preprocess.listing import Chunk, ListedInput
from pipeline.preprocess.repeated import Repeated, is_among, partitioned
from pipeline.preprocess.settings import Job
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing import duplicates
from preprocessing.writing.claim import work_folder
from preprocessing.writing.duplicates import Copy, DuplicateGroup
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.storage import storage

NOTHING = 0  # in place of a hash: this image has no equal


@dataclasses.dataclass(frozen=True)
class DuplicateDecision:
    """What is known of duplicates.

    Attributes:
      groups: all of them, sorted.
      reasons: by source id, why a copy is left out.
      copies: images that stay although they have an equal one.
    """

    groups: Sequence[DuplicateGroup]
    reasons: Mapping[str, str]
    copies: frozenset[str]


class Deduplicate(beam.PTransform):
    """Finds images whose files are equal; see `preprocessing.writing.duplicates` for how.

    Gives chunks without the copies that go (these are rejected in them), and one
    `DuplicateDecision`.

    Hashes are compared in arrays, so that no reference is shuffled but those of likely copies.
    """

    def __init__(self, job: Job, start: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.start = start

    # Not annotated: Beam warns of what is no single PCollection.
    def expand(self, chunks):
        start = beam.pvalue.AsSingleton(self.start)
        sizes = chunks | "Sizes" >> beam.FlatMap(_sizes, start=start) | "EqualSizes" >> Repeated()
        hashed = chunks | "HashMiddles" >> beam.Map(
            _hash_middles,
            sizes=beam.pvalue.AsSingleton(sizes),
            start=start,
            job=self.job,
        )
        hashes = hashed | "Hashes" >> beam.FlatMap(_hashes) | "EqualHashes" >> Repeated()
        found = (
            hashed
            | "LikelyCopies" >> beam.FlatMap(_likely, hashes=beam.pvalue.AsSingleton(hashes))
            | "SpreadCopies" >> beam.Reshuffle()
            | "HashWhole" >> beam.FlatMap(_by_content)
            | "EqualContents" >> beam.GroupByKey()
            | "Decide" >> beam.FlatMap(_decide, policy=self.job.duplicates)
        )
        known = self.start | "KnownCopies" >> beam.FlatMap(lambda start: start.known or ())
        verdict = (
            (found, known)
            | "AllCopies" >> beam.Flatten()
            | "ListCopies" >> beam.combiners.ToList()
            | "Verdict" >> beam.Map(_verdict, job=self.job)
        )
        kept = chunks | "LeaveOutCopies" >> beam.Map(
            _leave_out, verdict=beam.pvalue.AsSingleton(verdict)
        )
        return kept, verdict


def _sizes(chunk: Chunk, start: ListedInput) -> Iterator[tuple[int, np.ndarray]]:
    if start.known is None:
        yield from partitioned(np.array([r.size for r in chunk.images if not r.md5], np.uint64))


def _hash_middles(
    chunk: Chunk, sizes: np.ndarray, start: ListedInput, job: Job
) -> tuple[Chunk, np.ndarray]:
    """The chunk with a hash for each image; files of a size of their own are not read."""
    hashes = np.full(len(chunk.images), NOTHING, np.uint64)
    if start.known is None:
        equal = is_among(np.array([ref.size for ref in chunk.images], np.uint64), sizes)
        to_hash = [i for i, ref in enumerate(chunk.images) if ref.md5 or equal[i]]
        found = _in_threads(duplicates.middle_hash, [chunk.images[i] for i in to_hash], job)
        hashes[to_hash] = [NOTHING if value is None else value for value in found]
    return chunk, hashes


def _in_threads(
    function: Callable[[ImageRef], Any], refs: Sequence[ImageRef], job: Job
) -> list[Any]:
    """The function of each; a thread takes many, since each takes microseconds."""
    if not any(storage.is_bucket(ref.path) for ref in refs):
        return [function(ref) for ref in refs]  # a local disk answers sooner than a thread
    threads = job.threads_here
    slices = [refs[i::threads] for i in range(threads)]
    results: list[Any] = [None] * len(refs)
    with ThreadPoolExecutor(threads) as pool:
        for i, values in enumerate(pool.map(lambda some: [function(r) for r in some], slices)):
            results[i::threads] = values
    return results


def _hashes(hashed: tuple[Chunk, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    yield from partitioned(hashed[1][hashed[1] != NOTHING])


def _likely(hashed: tuple[Chunk, np.ndarray], hashes: np.ndarray) -> Iterator[ImageRef]:
    chunk, own = hashed
    for i in np.flatnonzero(is_among(own, hashes)):
        yield chunk.images[int(i)]


def _by_content(ref: ImageRef) -> Iterator[tuple[str, Copy]]:
    md5 = duplicates.full_md5(ref)
    if md5 is not None:
        yield f"{md5}:{ref.size}", Copy(ref.source_id, ref.class_name, ref.split or "")


def _decide(group: tuple[str, Iterable[Copy]], policy: str) -> Iterator[DuplicateGroup]:
    copies = list(group[1])
    if len(copies) > 1:
        yield duplicates.decide(copies, policy)


def _verdict(groups: Sequence[DuplicateGroup], job: Job) -> DuplicateDecision:
    groups = sorted(groups, key=lambda group: group.copies[0].source_id)
    if groups and job.duplicates == duplicates.ERROR:
        path = storage.join(work_folder(job.output), index.DUPLICATES_FILE)
        storage.make_folder(work_folder(job.output))
        storage.write_file(path, duplicates.write_groups(groups))
        counts = [f"{sum(g.kind == k for g in groups)} {k}" for k in duplicates.KINDS]
        first, second, *_ = groups[0].copies
        raise UsageError(
            f"{len(groups)} images are there more than once ({', '.join(counts)}), such as"
            f" {first.source_id} and {second.source_id}; see {path}, or set --duplicates=drop"
        )
    return DuplicateDecision(
        groups,
        {c.source_id: duplicates.reason(g) for g in groups for c in g.copies if not c.kept},
        frozenset(c.source_id for g in groups for c in g.copies if c.kept and _stay_equal(g)),
    )


def _stay_equal(group: DuplicateGroup) -> bool:
    return sum(copy.kept for copy in group.copies) > 1


def _leave_out(chunk: Chunk, verdict: DuplicateDecision) -> Chunk:
    images, rejected = [], list(chunk.rejected)
    for ref in chunk.images:
        reason = verdict.reasons.get(ref.source_id)
        if reason is None:
            images.append(ref)
        else:
            rejected.append(Rejected(ref.source_id, ref.class_name, reason, lost=False))
    return Chunk(tuple(images), tuple(rejected))
