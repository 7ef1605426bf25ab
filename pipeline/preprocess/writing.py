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
    """A plan, and the claim to write it.

    If the data set is already finished, the plan is empty and the claim is None.
    """

    plan: Plan
    claim: Claim | None


@beam.ptransform_fn
def plan_shards(
    chunks: beam.PCollection, job: Job, listed_input: beam.PCollection, decision: beam.PCollection
) -> beam.PCollection:
    """Counts the images that are left in each class, and plans labels and shards: one `Planned`.

    From this step on the output folder belongs to the job. What the folder held before is removed.
    """
    decided = beam.pvalue.AsSingleton(decision)
    listed = beam.pvalue.AsSingleton(listed_input)
    return (
        chunks
        | "CountKept" >> beam.FlatMap(_kept_images, decided)
        | "SumKept" >> beam.CombinePerKey(_sum_kept)
        | "AllKept" >> beam.combiners.ToDict()
        | "MakePlan" >> beam.Map(_make_plan, listed, decided, job)
    )


def _by_class(chunk: FileChunk) -> dict[ClassAndSplit, list[ImageRef]]:
    refs_by_class: dict[ClassAndSplit, list[ImageRef]] = {}
    for ref in chunk.images:
        refs_by_class.setdefault((ref.class_name, str(ref.split)), []).append(ref)
    return refs_by_class


def _kept_images(
    chunk: FileChunk, decision: DuplicateDecision
) -> Iterator[tuple[ClassAndSplit, KeptImages]]:
    for class_and_split, refs in _by_class(chunk).items():
        copies = decision.copies.intersection(ref.source_id for ref in refs)
        yield class_and_split, KeptImages(len(refs), copies)


def _sum_kept(images: Iterable[KeptImages]) -> KeptImages:
    return sum(images, start=KeptImages())


def _make_plan(
    kept: Mapping[ClassAndSplit, KeptImages],
    listed_input: ListedInput,
    decision: DuplicateDecision,
    job: Job,
) -> Planned:
    if listed_input.finished:
        return Planned(Plan({}, {}, {}, {}), None)
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


@beam.ptransform_fn
def write_shards(chunks: beam.PCollection, job: Job, planned: beam.PCollection) -> beam.PCollection:
    """Collects the references of each shard and writes the shard. The results are file names."""
    plan = beam.pvalue.AsSingleton(planned)
    whole = chunks | "WholeClasses" >> beam.FlatMap(_whole_classes, plan)
    parts = (
        chunks
        | "PartsOfClasses" >> beam.FlatMap(_parts_of_classes, plan)
        | "GatherClasses" >> beam.GroupByKey()
        | "PlaceImages" >> beam.FlatMap(_place_images, plan)
    )
    claim = planned | "Claim" >> beam.Map(lambda planned: planned.claim)
    return (
        (whole, parts)
        | "AllImages" >> beam.Flatten()
        | "GatherShards" >> beam.GroupByKey()
        | "WriteShard" >> beam.Map(_write_shard, beam.pvalue.AsSingleton(claim), job)
    )


def _whole_classes(chunk: FileChunk, planned: Planned) -> Iterator[ShardImages]:
    """Yields the images of classes that are in one shard, which need not be brought together."""
    for (name, split), refs in _by_class(chunk).items():
        if name in planned.plan.classes:
            shard = planned.plan.whole_shard(name, split)
            if shard is not None:
                yield _labelled((split, shard), name, refs, planned.plan)


def _parts_of_classes(
    chunk: FileChunk, planned: Planned
) -> Iterator[tuple[ClassAndSplit, list[ImageRef]]]:
    """Yields the images of the other classes. Their order in the class decides on the shard."""
    for (name, split), refs in _by_class(chunk).items():
        if name in planned.plan.classes and planned.plan.whole_shard(name, split) is None:
            yield (name, split), refs


def _place_images(
    of_class: tuple[ClassAndSplit, Iterable[list[ImageRef]]], planned: Planned
) -> Iterator[ShardImages]:
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
    task = ShardTask(
        file_name=index.shard_file(job.name, split, number, num_shards),
        shard=number,
        images=sorted(images, key=lambda image: (image[0], image[1].source_id)),
        columns=job.columns,
    )
    settings, threads = job.settings(), job.threads_here
    read = write_shard(task, claim=claim, settings=settings, image=job.image, threads=threads)
    count_images(read=read, reused=len(task.images) - read)
    return task.file_name


@beam.ptransform_fn
def commit_data_set(
    shards: beam.PCollection,
    job: Job,
    chunks: beam.PCollection,
    *,
    listed_input: beam.PCollection,
    decision: beam.PCollection,
    planned: beam.PCollection,
) -> beam.PCollection:
    """Writes the index, the classes and the rejected files when every shard is written.

    dataset_info.json is written last.
    """
    plan = beam.pvalue.AsSingleton(planned)
    left_out = beam.pvalue.AsIter(chunks | "LeftOut" >> beam.FlatMap(_left_out, plan, job))
    listed, decided = beam.pvalue.AsSingleton(listed_input), beam.pvalue.AsSingleton(decision)
    all_shards = shards | "AllShards" >> beam.combiners.ToList()
    return all_shards | "CommitDataSet" >> beam.Map(_commit, listed, decided, plan, left_out, job)


def _left_out(chunk: FileChunk, planned: Planned, job: Job) -> Iterator[Rejected]:
    yield from chunk.rejected
    for ref in chunk.images:
        if ref.class_name in planned.plan.too_small:
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
    # A runner may run a step twice.
    if planned.claim is None or index.is_finished(job.output):
        return
    assert len(shards) == sum(planned.plan.num_shards.values()), "a shard was not written"
    commit.commit(
        planned.plan,
        planned.claim,
        left_out=left_out,
        groups=decision.groups,
        num_listed=listed_input.listing.total.count + listed_input.listing.total.lost,
        max_rejected_share=job.max_rejected_share,
    )
