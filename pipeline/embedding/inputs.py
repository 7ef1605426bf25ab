"""The two inputs of an embedding job. Both are cut into one task per shard."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import apache_beam as beam

from pipeline.beam.outputs import claim_output, inspect_output
from pipeline.embedding.settings import IMAGES, RECORDS, Job
from pipeline.embedding.tasks import ImagesTask, RecordsTask
from pipeline.preprocess.listing import FileChunk, check_num_lost, list_files
from preprocessing.sources.references import ImageRef, Rejected, Source
from preprocessing.writing.claim import Claim
from preprocessing.writing.plan import ClassSummary, add_up, require_images, summarize
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.formats.model_card import ModelCard
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class InputSummary:
    """Summary of everything that is to be embedded.

    Attributes:
      description: what the info file of the embeddings says about the input: its kind, its
        fingerprint, and more.
      total: summary of all images, as far as listing knows.
      num_shards: number of files with embeddings, at least 1.
      versions: fingerprint of the modification times of the input files.
    """

    description: Mapping[str, Any]
    total: ClassSummary
    num_shards: int
    versions: str = ""


@dataclasses.dataclass(frozen=True)
class Planned:
    """The input, and the claim to write its embeddings; None if they are already finished."""

    input: InputSummary
    claim: Claim | None


def plan(input: InputSummary, job: Job) -> Planned:
    """Claims the output folder for the job. What the folder held before is removed.

    Raises:
      UsageError: the folder holds something else.
    """
    fingerprint = input.description["fingerprint"]
    if inspect_output(job, fingerprint=fingerprint, newest=input.total.newest).finished:
        return Planned(input, None)
    claim = claim_output(
        job,
        fingerprint=fingerprint,
        versions=input.versions,
        num_images=input.total.count,
        num_shards=input.num_shards,
    )
    return Planned(input, claim)


@dataclasses.dataclass(frozen=True)
class DatasetRecords:
    """The records of a data set. Each shard of records becomes one shard of embeddings."""

    kind: ClassVar[str] = RECORDS

    info: index.DatasetInfo
    splits: Sequence[str]

    def paths(self) -> dict[str, str]:
        """Returns the paths that are read, by their names in messages."""
        return {"data": self.info.directory}

    def description(self) -> dict[str, Any]:
        """Returns what the info file of the embeddings says about the input."""
        digest = hashlib.sha256(storage.read(self.info.path(index.INFO_FILE)))
        digest.update(" ".join(self.splits).encode())
        return {
            "kind": self.kind,
            "name": self.info.name,
            "splits": list(self.splits),
            "fingerprint": digest.hexdigest(),
        }

    def tasks(self) -> list[RecordsTask]:
        """Returns one task for each shard, sorted by split."""
        tasks: list[RecordsTask] = []
        for split in self.splits:
            lengths = self.info.shard_lengths[split]
            starts = itertools.accumulate(lengths, initial=0)
            files = self.info.shard_files(split)
            for shard, (file, first, count) in enumerate(zip(files, starts, lengths, strict=False)):
                tasks.append(
                    RecordsTask(
                        number=len(tasks),
                        data=self.info.directory,
                        split=split,
                        shard=shard,
                        shard_file=self.info.path(file),
                        index_file=self.info.path(index.index_file(self.info.name, split)),
                        first_row=first,
                        count=count,
                    )
                )
        return tasks

    def warning(self, card: ModelCard) -> str:
        """Returns how the images differ from those that the model was trained on, or ""."""
        of_records = self.info.settings.get("image", {})
        of_model = {**dataclasses.asdict(card.image), "background": [*card.image.background]}
        different = [
            f"{name} {of_records[name]}, the model's {of_model[name]}"
            for name in ("short_side", "quality", "background")
            if name in of_records and of_records[name] != of_model[name]
        ]
        if not different:
            return ""
        return (
            f"the records are not made like those of the model's training: {'; '.join(different)}"
        )

    def expand(
        self, pipeline: beam.Pipeline, job: Job
    ) -> tuple[beam.PCollection, beam.PCollection, beam.PCollection]:
        """Returns the tasks, the files that are left out unread, and one `Planned`."""
        tasks = self.tasks()
        total = ClassSummary({None: sum(task.count for task in tasks)})
        input = InputSummary(self.description(), total, num_shards=len(tasks))
        planned = pipeline | "Input" >> beam.Create([input]) | "Plan" >> beam.Map(plan, job=job)
        spread = pipeline | "Shards" >> beam.Create(tasks) | "SpreadShards" >> beam.Reshuffle()
        left_out = pipeline | "NothingLeftOut" >> beam.Create([])
        return spread, left_out, planned


def open_records(directory: str, splits: Sequence[str] | None) -> DatasetRecords:
    """Opens the records of a finished data set.

    Args:
      directory: folder of the data set.
      splits: names of the splits to embed; None for all.

    Raises:
      UsageError: the folder holds no finished data set, a split does not exist, no split is chosen,
        or a file is missing.
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
    """Image files.

    The hash of an image's name decides on its shard, so that no step needs to know all images.
    """

    kind: ClassVar[str] = IMAGES

    source: Source
    path: str

    def paths(self) -> dict[str, str]:
        """Returns the paths that are read, by their names in messages."""
        return {"input": self.path}

    def warning(self, card: ModelCard) -> str:
        """Returns "": the job itself brings the images into the form that the model expects."""
        return ""

    def expand(
        self, pipeline: beam.Pipeline, job: Job
    ) -> tuple[beam.PCollection, beam.PCollection, beam.PCollection]:
        """Returns the tasks, the files that are left out unread, and one `Planned`."""
        chunks = pipeline | "List" >> list_files(self.source)
        rejected = chunks | "Rejected" >> beam.FlatMap(lambda chunk: chunk.rejected)
        planned = (
            chunks
            | "Summarize" >> beam.Map(_summary)
            | "SumUp" >> beam.CombineGlobally(add_up)
            | "Input" >> beam.Map(_input_summary, beam.pvalue.AsIter(rejected), job=job)
            | "Plan" >> beam.Map(plan, job=job)
        )
        # Every shard gets a task, even if no image is placed in it.
        empty = planned | "Shards" >> beam.FlatMap(_empty_shards)
        placed = chunks | "PlaceImages" >> beam.FlatMap(
            place_images, planned=beam.pvalue.AsSingleton(planned)
        )
        tasks = (
            (empty, placed)
            | "AllImages" >> beam.Flatten()
            | "GatherShards" >> beam.GroupByKey()
            | "Tasks" >> beam.MapTuple(_task)
        )
        return tasks, rejected, planned


def _summary(chunk: FileChunk) -> ClassSummary:
    return add_up(summarize((*chunk.images, *chunk.rejected)).values())


def _input_summary(summary: ClassSummary, rejected: Iterable[Rejected], job: Job) -> InputSummary:
    require_images(summary)
    check_num_lost(summary, rejected, job)
    return InputSummary(
        description={"kind": IMAGES, "fingerprint": f"{summary.fingerprint:064x}"},
        total=summary,
        num_shards=-(-summary.count // job.images_per_shard),
        versions=f"{summary.versions:064x}",
    )


ShardImages = tuple[int, list[ImageRef]]  # the number of a shard, and images in the shard


def _empty_shards(planned: Planned) -> Iterator[ShardImages]:
    if planned.claim is not None:
        for number in range(planned.input.num_shards):
            yield number, []


def place_images(chunk: FileChunk, planned: Planned) -> Iterator[ShardImages]:
    """Yields the images of a chunk, by shard; nothing if the embeddings are already finished."""
    if planned.claim is None:
        return
    placed: dict[int, list[ImageRef]] = {}
    for ref in chunk.images:
        digest = hashlib.sha256(ref.source_id.encode("utf-8", "surrogatepass")).digest()
        number = int.from_bytes(digest[:8], "big") % planned.input.num_shards
        placed.setdefault(number, []).append(ref)
    yield from placed.items()


def _task(number: int, parts: Iterable[list[ImageRef]]) -> ImagesTask:
    refs = itertools.chain.from_iterable(parts)
    return ImagesTask(number, sorted(refs, key=lambda ref: ref.source_id))
