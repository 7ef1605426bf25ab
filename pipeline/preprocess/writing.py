"""Plans the shards of a data set, writes them, and commits the data set."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam

from pipeline.beam.execution import count_images
from pipeline.beam.outputs import claim_output
from pipeline.preprocess.deduplicate import DuplicateDecision
from pipeline.preprocess.listing import FileChunk, ListedInput
from pipeline.preprocess.settings import Job
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing import commit
from preprocessing.writing.claim import Claim
from preprocessing.writing.duplicates import write_groups
from preprocessing.writing.plan import KeptImages, Plan, make_plan
from preprocessing.writing.shards import ShardTask, write_shard
from tripletmill.formats import index
from tripletmill.storage import storage

LabelledImage = tuple[int, ImageRef]
ClassAndSplit = tuple[str, str]
Shard = tuple[str, int]  # its split, and its number in the split
# The images of a shard, by the shard and the number of shards of its split. A worker that writes
# the shard needs to know no more.
ShardImages = tuple[tuple[Shard, int], list[LabelledImage]]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan, and the claim to write it. Both are None if the data set is already finished."""

    plan: Plan | None
    claim: Claim | None


class MakePlan(beam.PTransform):
    """Counts the images that are left in each class, and plans labels and shards: one `Planned`.

    From this step on the output folder belongs to the job. What the folder held before is removed.
    """

    def __init__(
        self, job: Job, listed_input: beam.PCollection, decision: beam.PCollection
    ) -> None:
        super().__init__()
        self.job = job
        self.listed_input = listed_input
        self.decision = decision

    def expand(self, chunks: beam.PCollection) -> beam.PCollection:
        decision = beam.pvalue.AsSingleton(self.decision)
        return (
            chunks
            | "CountKept" >> beam.FlatMap(_kept_images, decision=decision)
            | "SumKept" >> beam.CombinePerKey(_sum_kept)
            | "AllKept" >> beam.combiners.ToDict()
            | "MakePlan"
            >> beam.Map(
                _make_plan,
                listed_input=beam.pvalue.AsSingleton(self.listed_input),
                decision=decision,
                job=self.job,
            )
        )


def _kept_images(
    chunk: FileChunk, decision: DuplicateDecision
) -> Iterator[tuple[ClassAndSplit, KeptImages]]:
    names_by_class: dict[ClassAndSplit, list[str]] = {}
    for ref in chunk.images:
        names_by_class.setdefault((ref.class_name, str(ref.split)), []).append(ref.source_id)
    for class_and_split, names in names_by_class.items():
        yield class_and_split, KeptImages(len(names), decision.copies.intersection(names))


def _sum_kept(images: Iterable[KeptImages]) -> KeptImages:
    return sum(images, start=KeptImages())


def _make_plan(
    kept: Mapping[ClassAndSplit, KeptImages],
    listed_input: ListedInput,
    decision: DuplicateDecision,
    job: Job,
) -> Planned:
    if listed_input.finished:
        return Planned(None, None)
    plan = make_plan(
        kept, splits=job.splits, images_per_shard=job.images_per_shard, min_images=job.min_images
    )
    claim = claim_output(
        job,
        fingerprint=listed_input.listing.fingerprint,
        versions=listed_input.listing.versions,
        num_images=sum(plan.num_images.values()),
        num_shards=sum(plan.num_shards.values()),
    )
    path = storage.join(claim.folder, index.DUPLICATES_FILE)
    storage.write_file(path, write_groups(decision.groups))
    return Planned(plan, claim)


class WriteShards(beam.PTransform):
    """Collects the references of each shard and writes the shard. The results are file names."""

    def __init__(self, job: Job, planned: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.planned = planned

    def expand(self, chunks: beam.PCollection) -> beam.PCollection:
        planned = beam.pvalue.AsSingleton(self.planned)
        whole = chunks | "WholeClasses" >> beam.FlatMap(_whole_classes, planned=planned)
        parts = (
            chunks
            | "PartsOfClasses" >> beam.FlatMap(_parts_of_classes, planned=planned)
            | "GatherClasses" >> beam.GroupByKey()
            | "PlaceImages" >> beam.FlatMap(_place_images, planned=planned)
        )
        claim = self.planned | "Claim" >> beam.Map(lambda planned: planned.claim)
        return (
            (whole, parts)
            | "AllImages" >> beam.Flatten()
            | "GatherShards" >> beam.GroupByKey()
            | "WriteShard"
            >> beam.Map(_write_shard, claim=beam.pvalue.AsSingleton(claim), job=self.job)
        )


def _by_class(chunk: FileChunk, plan: Plan) -> dict[ClassAndSplit, list[ImageRef]]:
    refs_by_class: dict[ClassAndSplit, list[ImageRef]] = {}
    for ref in chunk.images:
        if ref.class_name in plan.classes:
            refs_by_class.setdefault((ref.class_name, str(ref.split)), []).append(ref)
    return refs_by_class


def _whole_classes(chunk: FileChunk, planned: Planned) -> Iterator[ShardImages]:
    """Yields the images of classes that are in one shard, which need not be brought together."""
    assert planned.plan is not None
    for (name, split), refs in _by_class(chunk, planned.plan).items():
        shard = planned.plan.whole_shard(name, split)
        if shard is not None:
            yield _labelled((split, shard), name, refs, planned.plan)


def _parts_of_classes(
    chunk: FileChunk, planned: Planned
) -> Iterator[tuple[ClassAndSplit, list[ImageRef]]]:
    """Yields the images of the other classes. Their order in the class decides on the shard."""
    assert planned.plan is not None
    for (name, split), refs in _by_class(chunk, planned.plan).items():
        if planned.plan.whole_shard(name, split) is None:
            yield (name, split), refs


def _place_images(
    of_class: tuple[ClassAndSplit, Iterable[list[ImageRef]]], planned: Planned
) -> Iterator[ShardImages]:
    assert planned.plan is not None
    (name, split), parts = of_class
    refs = list(itertools.chain.from_iterable(parts))
    for shard, placed in planned.plan.place(name, split, refs):
        yield _labelled(shard, name, placed, planned.plan)


def _labelled(shard: Shard, name: str, refs: Sequence[ImageRef], plan: Plan) -> ShardImages:
    label = plan.classes[name].label
    return (shard, plan.num_shards[shard[0]]), [(label, ref) for ref in refs]


def _write_shard(
    of_shard: tuple[tuple[Shard, int], Iterable[list[LabelledImage]]],
    claim: Claim | None,
    job: Job,
) -> str:
    assert claim is not None
    ((split, number), num_shards), parts = of_shard
    images = itertools.chain.from_iterable(parts)
    written = write_shard(
        ShardTask(
            file_name=index.shard_file(job.name, split, number, num_shards),
            shard=number,
            images=sorted(images, key=lambda image: (image[0], image[1].source_id)),
            columns=job.columns,
        ),
        claim=claim,
        settings=job.settings(),
        image=job.image,
        threads=job.threads_here,
    )
    count_images(read=written.read, reused=written.reused)
    return written.file_name


class Commit(beam.PTransform):
    """Writes the index, the classes and the rejected files when every shard is written.

    dataset_info.json is written last.
    """

    def __init__(
        self,
        job: Job,
        chunks: beam.PCollection,
        *,
        listed_input: beam.PCollection,
        decision: beam.PCollection,
        planned: beam.PCollection,
    ) -> None:
        super().__init__()
        self.job = job
        self.chunks = chunks
        self.listed_input = listed_input
        self.decision = decision
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
                listed_input=beam.pvalue.AsSingleton(self.listed_input),
                decision=beam.pvalue.AsSingleton(self.decision),
                planned=planned,
                left_out=beam.pvalue.AsIter(left_out),
                job=self.job,
            )
        )


def _left_out(chunk: FileChunk, planned: Planned, job: Job) -> Iterator[Rejected]:
    yield from chunk.rejected
    too_small = planned.plan.too_small if planned.plan is not None else {}
    for ref in chunk.images:
        if ref.class_name in too_small:
            reason = f"class with fewer than {job.min_images} images"
            yield Rejected(ref.source_id, ref.class_name, reason, lost=False)


def _commit(
    shards: Sequence[str],
    listed_input: ListedInput,
    decision: DuplicateDecision,
    planned: Planned,
    left_out: Iterable[Rejected],
    job: Job,
) -> None:
    if planned.plan is None or planned.claim is None:
        return
    if index.is_finished(job.output):
        # A runner may run a step twice.
        return
    assert len(shards) == sum(planned.plan.num_shards.values()), "a shard was not written"
    info = commit.CommitInfo(
        name=job.name,
        settings=job.settings(),
        input_fingerprint=listed_input.listing.fingerprint,
        columns=job.columns,
        group=job.group,
        num_listed=listed_input.listing.num_images + listed_input.listing.num_lost,
        max_rejected_share=job.max_rejected_share,
        min_images=job.min_images,
    )
    commit.commit(planned.plan, planned.claim, info, left_out=left_out, groups=decision.groups)
