"""What is embedded: listed, summed up, and cut into one task a shard."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from pipeline.beam.outputs import look, take
from pipeline.embedding.settings import EMBEDDINGS, IMAGES, RECORDS, Job
from pipeline.embedding.tasks import ImagesTask, RecordsTask
from pipeline.preprocess.listing import Chunk, List, check_lost
from preprocessing.sources.references import ImageRef, Rejected, Source
from preprocessing.writing.claim import Claim
from preprocessing.writing.plan import ClassSummary, add, summarize
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.formats.model_card import ModelCard
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Input:
    """All that is to be embedded.

    Attributes:
      said: what the embeddings' info says of it: its kind, its fingerprint, and more.
      num_images: that can be read, as far as is known before.
      num_lost: that cannot.
      num_shards: of embeddings, 1 or more.
      versions: of the times of its files.
      newest: of these, nanoseconds.
    """

    said: Mapping[str, Any]
    num_images: int
    num_lost: int
    num_shards: int
    versions: str = ""
    newest: int = 0


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be embedded, and the right to write it; None where nothing is to be done."""

    input: Input
    claim: Claim | None


def plan(input: Input, job: Job) -> Planned:
    """Looks at the output and makes it this job's; what it held before is removed.

    Raises:
      UsageError: it holds something else.
    """
    fingerprint = input.said["fingerprint"]
    found = look(
        EMBEDDINGS,
        job.output,
        settings=job.settings(),
        fingerprint=fingerprint,
        newest=input.newest,
        overwrite=job.overwrite,
    )
    if found.finished:
        return Planned(input, None)
    content = {
        "noun": EMBEDDINGS.noun,
        "settings": job.settings(),
        "input_fingerprint": fingerprint,
        "versions": input.versions,
        "num_images": input.num_images,
        "num_shards": input.num_shards,
    }
    claim = Claim(job.output, content)
    take(EMBEDDINGS, claim)
    return Planned(input, claim)


@dataclasses.dataclass(frozen=True)
class DatasetRecords:
    """Records of a data set: a shard of embeddings for each shard of records."""

    info: index.DatasetInfo
    splits: Sequence[str]

    def said(self) -> dict[str, Any]:
        """What the info of the embeddings says of them."""
        digest = hashlib.sha256(storage.read(self.info.path(index.INFO_FILE)))
        digest.update(" ".join(self.splits).encode())
        return {
            "kind": RECORDS,
            "name": self.info.name,
            "splits": list(self.splits),
            "fingerprint": digest.hexdigest(),
        }

    def tasks(self) -> list[RecordsTask]:
        """One for each shard, by split."""
        found: list[RecordsTask] = []
        for split in self.splits:
            lengths = self.info.shard_lengths[split]
            starts = itertools.accumulate(lengths, initial=0)
            files = self.info.shard_files(split)
            for shard, (file, first, count) in enumerate(zip(files, starts, lengths, strict=False)):
                found.append(
                    RecordsTask(
                        number=len(found),
                        data=self.info.directory,
                        split=split,
                        shard=shard,
                        shard_file=self.info.path(file),
                        index_file=self.info.path(index.index_file(self.info.name, split)),
                        first_row=first,
                        count=count,
                    )
                )
        return found

    def warning(self, card: ModelCard) -> str:
        """Says where its images are not as those that the model was trained on; else ""."""
        made = self.info.settings.get("image", {})
        wanted = {**dataclasses.asdict(card.image), "background": [*card.image.background]}
        different = [
            f"{name} {made[name]}, the model's {wanted[name]}"
            for name in ("short_side", "quality", "background")
            if name in made and made[name] != wanted[name]
        ]
        if not different:
            return ""
        return (
            f"the records are not made like those of the model's training: {'; '.join(different)}"
        )

    def expand(
        self, pipeline: beam.Pipeline, job: Job
    ) -> tuple[beam.PCollection, beam.PCollection, beam.PCollection]:
        """Tasks, what was left out before any image was read, and one `Planned`."""
        tasks = self.tasks()
        input = Input(
            said=self.said(),
            num_images=sum(task.count for task in tasks),
            num_lost=0,
            num_shards=len(tasks),
        )
        planned = pipeline | "Input" >> beam.Create([input]) | "Plan" >> beam.Map(plan, job=job)
        spread = pipeline | "Shards" >> beam.Create(tasks) | "SpreadShards" >> beam.Reshuffle()
        none = pipeline | "NothingLeftOut" >> beam.Create([])
        return spread, none, planned


def open_records(directory: str, splits: Sequence[str] | None) -> DatasetRecords:
    """Records of a finished data set.

    Args:
      directory: of the data set.
      splits: which of them; None for all.

    Raises:
      UsageError: no finished data set, no such split, or a shard that is not there.
    """
    info = index.load_info(storage.absolute(directory))
    chosen = sorted({*(info.num_shards if splits is None else splits)})
    unknown = [split for split in chosen if split not in info.num_shards]
    if unknown or not chosen:
        what = f"no split {unknown[0]!r}, only" if unknown else "no split chosen of"
        raise UsageError(f"data {directory}: {what} {', '.join(sorted(info.num_shards))}")
    sizes = index.file_sizes(info.directory)
    for split in chosen:
        for file in (index.index_file(info.name, split), *info.shard_files(split)):
            if file not in sizes:
                raise UsageError(f"data {directory}: {file} is missing")
    return DatasetRecords(info, chosen)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files: each goes to a shard by the hash of its name, so that none knows the others."""

    source: Source

    def expand(
        self, pipeline: beam.Pipeline, job: Job
    ) -> tuple[beam.PCollection, beam.PCollection, beam.PCollection]:
        """Tasks, what was left out before any image was read, and one `Planned`."""
        chunks = pipeline | "List" >> List(self.source)
        rejected = chunks | "Rejected" >> beam.FlatMap(lambda chunk: chunk.rejected)
        planned = (
            chunks
            | "Summarize" >> beam.Map(_summary)
            | "SumUp" >> beam.CombineGlobally(_sum)
            | "Input" >> beam.Map(_input, beam.pvalue.AsIter(rejected), job=job)
            | "Plan" >> beam.Map(plan, job=job)
        )
        # Every shard is there, be it without an image.
        empty = planned | "Shards" >> beam.FlatMap(_empty_shards)
        placed = chunks | "PlaceImages" >> beam.FlatMap(
            _place, planned=beam.pvalue.AsSingleton(planned)
        )
        tasks = (
            (empty, placed)
            | "AllImages" >> beam.Flatten()
            | "GatherShards" >> beam.GroupByKey()
            | "Tasks" >> beam.MapTuple(_task)
        )
        return tasks, rejected, planned


def _summary(chunk: Chunk) -> ClassSummary:
    return _sum(summarize((*chunk.images, *chunk.rejected)).values())


def _sum(summaries: Iterable[ClassSummary]) -> ClassSummary:
    return functools.reduce(add, summaries, ClassSummary())


def _input(found: ClassSummary, rejected: Iterable[Rejected], job: Job) -> Input:
    if not found.count:
        lost = f"; {found.lost} cannot be used: {found.example}" if found.lost else ""
        raise UsageError(f"no images in the input{lost}")
    check_lost(
        rejected,
        num_images=found.count,
        num_lost=found.lost,
        max_share=job.max_rejected_share,
        example=found.example,
        output=job.output,
    )
    return Input(
        said={"kind": IMAGES, "fingerprint": f"{found.fingerprint:064x}"},
        num_images=found.count,
        num_lost=found.lost,
        num_shards=-(-found.count // job.images_per_shard),
        versions=f"{found.versions:064x}",
        newest=found.newest,
    )


Placed = tuple[int, list[ImageRef]]


def _empty_shards(planned: Planned) -> Iterator[Placed]:
    if planned.claim is not None:
        for number in range(planned.input.num_shards):
            yield number, []


def _place(chunk: Chunk, planned: Planned) -> Iterator[Placed]:
    if planned.claim is None:
        return
    placed: dict[int, list[ImageRef]] = {}
    for ref in chunk.images:
        digest = hashlib.sha256(ref.source_id.encode("utf-8", "surrogatepass")).digest()
        number = int.from_bytes(digest[:8], "big") % planned.input.num_shards
        placed.setdefault(number, []).append(ref)
    yield from placed.items()


def _task(number: int, lists: Iterable[list[ImageRef]]) -> ImagesTask:
    refs = [ref for some in lists for ref in some]
    return ImagesTask(number, sorted(refs, key=lambda ref: ref.source_id))
