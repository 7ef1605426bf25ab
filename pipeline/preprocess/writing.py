"""Plan, WriteShards and Commit: the data set."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.beam.outputs import take
from pipeline.preprocess.deduplicate import DuplicateDecision
from pipeline.preprocess.listing import Chunk, ListedInput
from pipeline.preprocess.settings import DATA_SET, Job
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing import commit
from preprocessing.writing.claim import Claim
from preprocessing.writing.duplicates import write_groups
from preprocessing.writing.plan import KeptImages, Plan, make_plan
from preprocessing.writing.shards import ShardTask, write_shard
from tripletmill.formats import index
from tripletmill.storage import storage

COUNTERS = "tripletmill"
READ, REUSED = "images_read", "images_reused"

Labelled = tuple[int, ImageRef]
Shard = tuple[str, int]  # split and number


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan, and the right to write it; both None where nothing is to be done."""

    plan: Plan | None
    claim: Claim | None


class MakePlan(beam.PTransform):
    """Counts what is left of each class and plans labels and shards: one `Planned`.

    From here on the output belongs to this job; what it held before is removed.
    """

    def __init__(self, job: Job, start: beam.PCollection, verdict: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.start = start
        self.verdict = verdict

    def expand(self, chunks: beam.PCollection) -> beam.PCollection:
        verdict = beam.pvalue.AsSingleton(self.verdict)
        return (
            chunks
            | "CountKept" >> beam.FlatMap(_kept, verdict=verdict)
            | "SumKept" >> beam.CombinePerKey(_sum)
            | "AllKept" >> beam.combiners.ToDict()
            | "MakePlan"
            >> beam.Map(
                _plan, start=beam.pvalue.AsSingleton(self.start), verdict=verdict, job=self.job
            )
        )


def _kept(chunk: Chunk, verdict: DuplicateDecision) -> Iterator[tuple[tuple[str, str], KeptImages]]:
    found: dict[tuple[str, str], list[str]] = {}
    for ref in chunk.images:
        found.setdefault((ref.class_name, str(ref.split)), []).append(ref.source_id)
    for key, names in found.items():
        yield key, KeptImages(len(names), verdict.copies.intersection(names))


def _sum(images: Iterable[KeptImages]) -> KeptImages:
    return sum(images, start=KeptImages())


def _plan(
    kept: Mapping[tuple[str, str], KeptImages],
    start: ListedInput,
    verdict: DuplicateDecision,
    job: Job,
) -> Planned:
    if start.finished:
        return Planned(None, None)
    plan = make_plan(
        kept, splits=job.splits, images_per_shard=job.images_per_shard, min_images=job.min_images
    )
    content = {
        "settings": job.settings(),
        "input_fingerprint": start.listing.fingerprint,
        "versions": start.listing.versions,
        "num_images": sum(plan.num_images.values()),
        "num_shards": sum(plan.num_shards.values()),
    }
    claim = Claim(job.output, content)
    take(DATA_SET, claim)
    path = storage.join(claim.folder, index.DUPLICATES_FILE)
    storage.write_file(path, write_groups(verdict.groups))
    return Planned(plan, claim)


class WriteShards(beam.PTransform):
    """Brings the references of each shard together and writes it; gives the shards' file names."""

    def __init__(self, job: Job, planned: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.planned = planned

    def expand(self, chunks: beam.PCollection) -> beam.PCollection:
        planned = beam.pvalue.AsSingleton(self.planned)
        whole = chunks | "WholeClasses" >> beam.FlatMap(_whole, planned=planned)
        parts = (
            chunks
            | "PartsOfClasses" >> beam.FlatMap(_parts, planned=planned)
            | "GatherClasses" >> beam.GroupByKey()
            | "PlaceImages" >> beam.FlatMap(_place, planned=planned)
        )
        claim = self.planned | "Claim" >> beam.Map(lambda planned: planned.claim)
        return (
            (whole, parts)
            | "AllImages" >> beam.Flatten()
            | "GatherShards" >> beam.GroupByKey()
            | "WriteShard"
            >> beam.Map(_write_shard, claim=beam.pvalue.AsSingleton(claim), job=self.job)
        )


def _by_class(chunk: Chunk, plan: Plan) -> dict[tuple[str, str], list[ImageRef]]:
    found: dict[tuple[str, str], list[ImageRef]] = {}
    for ref in chunk.images:
        if ref.class_name in plan.classes:
            found.setdefault((ref.class_name, str(ref.split)), []).append(ref)
    return found


def _whole(chunk: Chunk, planned: Planned) -> Iterator[tuple[tuple[Shard, int], list[Labelled]]]:
    """Images of classes that lie in one shard: they need not know their neighbours."""
    assert planned.plan is not None
    for (name, split), refs in _by_class(chunk, planned.plan).items():
        shard = planned.plan.whole_shard(name, split)
        if shard is not None:
            yield _labelled((split, shard), name, refs, planned.plan)


def _parts(chunk: Chunk, planned: Planned) -> Iterator[tuple[tuple[str, str], list[ImageRef]]]:
    assert planned.plan is not None
    for (name, split), refs in _by_class(chunk, planned.plan).items():
        if planned.plan.whole_shard(name, split) is None:
            yield (name, split), refs


def _place(
    images: tuple[tuple[str, str], Iterable[list[ImageRef]]], planned: Planned
) -> Iterator[tuple[tuple[Shard, int], list[Labelled]]]:
    assert planned.plan is not None
    (name, split), lists = images
    refs = [ref for some in lists for ref in some]
    for shard, placed in planned.plan.place(name, split, refs):
        yield _labelled(shard, name, placed, planned.plan)


def _labelled(
    shard: Shard, name: str, refs: Sequence[ImageRef], plan: Plan
) -> tuple[tuple[Shard, int], list[Labelled]]:
    """Keyed by shard and number of shards: all that its writer needs."""
    label = plan.classes[name].label
    return (shard, plan.num_shards[shard[0]]), [(label, ref) for ref in refs]


def _write_shard(
    shard: tuple[tuple[Shard, int], Iterable[list[Labelled]]], claim: Claim | None, job: Job
) -> str:
    assert claim is not None
    ((split, number), num_shards), lists = shard
    images = [item for some in lists for item in some]
    written = write_shard(
        ShardTask(
            file_name=index.shard_file(job.name, split, number, num_shards),
            shard=number,
            images=sorted(images, key=lambda item: (item[0], item[1].source_id)),
            columns=job.columns,
        ),
        claim=claim,
        settings=job.settings(),
        image=job.image,
        threads=job.threads_here,
    )
    Metrics.counter(COUNTERS, READ).inc(written.read)
    Metrics.counter(COUNTERS, REUSED).inc(written.reused)
    return written.file_name


class Commit(beam.PTransform):
    """Once every shard is written: index, classes, rejects, and dataset_info.json last."""

    def __init__(
        self,
        job: Job,
        chunks: beam.PCollection,
        *,
        start: beam.PCollection,
        verdict: beam.PCollection,
        planned: beam.PCollection,
    ) -> None:
        super().__init__()
        self.job = job
        self.chunks = chunks
        self.start = start
        self.verdict = verdict
        self.planned = planned

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        planned = beam.pvalue.AsSingleton(self.planned)
        left_out = self.chunks | "LeftOut" >> beam.FlatMap(_left_out, planned=planned, job=self.job)
        return (
            shards
            | "AllShards" >> beam.combiners.ToList()
            | "CommitDataSet"
            >> beam.Map(
                _commit,
                start=beam.pvalue.AsSingleton(self.start),
                verdict=beam.pvalue.AsSingleton(self.verdict),
                planned=planned,
                left_out=beam.pvalue.AsIter(left_out),
                job=self.job,
            )
        )


def _left_out(chunk: Chunk, planned: Planned, job: Job) -> Iterator[Rejected]:
    yield from chunk.rejected
    too_small = planned.plan.too_small if planned.plan is not None else {}
    for ref in chunk.images:
        if ref.class_name in too_small:
            reason = f"class with fewer than {job.min_images} images"
            yield Rejected(ref.source_id, ref.class_name, reason, lost=False)


def _commit(
    shards: Sequence[str],
    start: ListedInput,
    verdict: DuplicateDecision,
    planned: Planned,
    left_out: Iterable[Rejected],
    job: Job,
) -> None:
    if planned.plan is None or planned.claim is None:
        return
    if index.is_finished(job.output):
        # A runner may carry out a step twice.
        return
    assert len(shards) == sum(planned.plan.num_shards.values()), "a shard was not written"
    finish = commit.CommitInfo(
        name=job.name,
        settings=job.settings(),
        input_fingerprint=start.listing.fingerprint,
        columns=job.columns,
        group=job.group,
        num_listed=start.listing.num_images + start.listing.num_lost,
        max_rejected_share=job.max_rejected_share,
        min_images=job.min_images,
    )
    commit.commit(planned.plan, planned.claim, finish, left_out=left_out, groups=verdict.groups)
