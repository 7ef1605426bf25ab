"""Images to class-grouped TFRecords: List -> Plan -> WriteShards -> Commit.

Listing and planning move references to images, never pixels. One task writes one shard. Killed at
any point, the same call goes on from the finished shards.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.progress import ShardProgress
from preprocessing import commit, index
from preprocessing.errors import UsageError
from preprocessing.images import ImageSettings, encoder_versions
from preprocessing.plan import ClassSummary, HashSplits, Plan, SplitRule, make_plan
from preprocessing.shards import ShardTask, write_shard
from preprocessing.sources import ImageRef, Rejected, Source, open_source
from preprocessing.storage import exclusive, require_local, write_file


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know; see `preprocess` for the fields."""

    output: str
    name: str
    image: ImageSettings
    splits: SplitRule
    images_per_shard: int
    max_rejected_share: float
    threads: int
    overwrite: bool

    @property
    def work(self) -> str:
        """Folder of what is needed until the commit."""
        return os.path.join(self.output, commit.WORK_FOLDER)

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the data set, besides the input."""
        content = {
            "name": self.name,
            "image": dataclasses.asdict(self.image),
            "splits": {"rule": type(self.splits).__name__, **_fields(self.splits)},
            "images_per_shard": self.images_per_shard,
            "versions": {**encoder_versions(), "pyarrow": pa.__version__},
        }
        return json.loads(json.dumps(content))


def _fields(rule: SplitRule) -> dict[str, Any]:
    return dataclasses.asdict(rule) if dataclasses.is_dataclass(rule) else {}


def preprocess(
    *,
    input: str,
    output: str,
    name: str | None = None,
    short_side: int = 256,
    quality: int = 90,
    background: tuple[int, int, int] = (255, 255, 255),
    splits: SplitRule | None = None,
    images_per_shard: int = 1000,
    max_rejected_share: float = 0.05,
    threads: int | None = None,
    overwrite: bool = False,
    runner: PipelineRunner,
    options: PipelineOptions,
) -> index.DatasetInfo:
    """Makes a data set from labelled images.

    Args:
      input: a folder of class folders, or a CSV file (path,label[,split]).
      output: folder of the data set; made if needed.
      name: first part of the file names; by default the last part of `output`.
      short_side: of the canonical JPEGs, pixels.
      quality: of the canonical JPEGs, 1 to 100.
      background: RGB colour that transparent images are laid over, 0 to 255 each.
      splits: which class goes to which split, where the input does not say; by default a stable
        hash of the name, 80 % train, 10 % val, 10 % test.
      images_per_shard: a shard's share of images.
      max_rejected_share: above this share of unreadable images the job fails, 0 to 1.
      threads: images decoded at once in a worker; by default the number of its cores.
      overwrite: whether a data set that lies in `output` may be replaced.
      runner: Beam runner.
      options: Beam options.

    Returns:
      What is in the finished data set. If it was there already, made from the same images with
      the same settings, nothing is done.

    Raises:
      UsageError: the input cannot be used, or `output` holds something else.
    """
    require_local(input, "input")
    require_local(output, "output")
    for value, valid, what in (
        (images_per_shard, images_per_shard >= 1, "images_per_shard: at least 1"),
        (threads, threads is None or threads >= 1, "threads: at least 1"),
        (max_rejected_share, 0 <= max_rejected_share <= 1, "max_rejected_share: 0 to 1"),
    ):
        if not valid:
            raise UsageError(f"{what}, not {value}")
    if splits is not None and (isinstance(splits, type) or not isinstance(splits, SplitRule)):
        raise UsageError(f"preprocess.splits: @HashSplits() or @SortedSplits(), not {splits!r}")
    job = Job(
        output=os.path.abspath(output),
        name=_data_set_name(name, output),
        image=ImageSettings(short_side=short_side, quality=quality, background=background),
        splits=splits or HashSplits(),
        images_per_shard=images_per_shard,
        max_rejected_share=max_rejected_share,
        threads=threads or os.cpu_count() or 1,
        overwrite=overwrite,
    )
    input = os.path.abspath(input)
    if os.path.isdir(input) and os.path.commonpath([input, job.output]) == input:
        raise UsageError(f"output {output}: lies in the input; choose a place outside of it")
    source = open_source(input)
    parts = source.parts()
    _check_output(job)
    with (
        _lock(job),
        ShardProgress(job.work),
        beam.Pipeline(runner=runner, options=options) as pipeline,
    ):
        listed = pipeline | "List" >> List(source, parts)
        images = listed | "Images" >> beam.FlatMap(_images)
        left_out = listed | "LeftOut" >> beam.FlatMap(_left_out)
        plan = images | "Plan" >> MakePlan(job)
        written = images | "WriteShards" >> WriteShards(job, plan)
        _ = written | "Commit" >> Commit(job, plan, left_out)
    return index.load_info(job.output)


def _data_set_name(name: str | None, output: str) -> str:
    name = name or re.sub(r"[^a-z0-9_]+", "_", os.path.basename(os.path.abspath(output)).lower())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"name {name!r}: a letter, then lower-case letters, digits and underscores; set --name"
        )
    return name


def _lock(job: Job) -> contextlib.AbstractContextManager[None]:
    """Keeps a second job out of an unfinished data set; a finished one is not written to."""
    if index.is_finished(job.output) and not job.overwrite:
        return contextlib.nullcontext()
    os.makedirs(job.work, exist_ok=True)
    return exclusive(os.path.join(job.work, "lock"), f"output {job.output}")


def _check_output(job: Job) -> None:
    """Sees that the folder is ours to write in, and that what lies there fits the settings."""
    if os.path.exists(job.output) and not os.path.isdir(job.output):
        raise UsageError(f"output {job.output}: not a folder")
    found = _found(job)
    if found is None:
        there = set(os.listdir(job.output)) if os.path.isdir(job.output) else set()
        # Killed between making the work folder and writing the plan, nothing else is there.
        if there - {commit.WORK_FOLDER}:
            raise UsageError(
                f"output {job.output}: not empty, and no data set of tripletmill; choose another"
            )
    elif not job.overwrite:
        different = _differences(found["settings"], job.settings())
        if different:
            raise UsageError(
                f"output {job.output}: holds a data set with other settings"
                f" ({'; '.join(different)}); choose another --output, or --overwrite it"
            )


def _found(job: Job) -> Mapping[str, Any] | None:
    """Settings and input fingerprint of the data set in the output, finished or not."""
    if index.is_finished(job.output):
        info = index.load_info(job.output)
        return {"settings": info.settings, "input_fingerprint": info.input_fingerprint}
    try:
        with open(os.path.join(job.work, commit.PLAN_FILE), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key} {before}, now {now}")
    return found


class List(beam.PTransform):
    """Lists every file of a source, as `ImageRef` or as `Rejected`; reads none of them."""

    def __init__(self, source: Source, parts: Sequence[Any]) -> None:
        super().__init__()
        self.source = source
        self.parts = parts

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Parts" >> beam.Create(self.parts)
            | "SpreadParts" >> beam.Reshuffle()
            | "ListPart" >> beam.FlatMap(self.source.list_part)
        )


def _images(file: ImageRef | Rejected) -> Iterator[ImageRef]:
    if isinstance(file, ImageRef):
        yield file


def _left_out(file: ImageRef | Rejected) -> Iterator[Rejected]:
    if isinstance(file, Rejected):
        yield file


class MakePlan(beam.PTransform):
    """Counts the images of each class and plans labels, splits and shards: one `Plan`.

    Where the output holds a finished data set from other images, or an unfinished one, it stops
    with an error rather than mix the two.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def expand(self, images: beam.PCollection) -> beam.PCollection:
        return (
            images
            | "Summarize" >> beam.Map(_summary)
            | "SumClasses" >> beam.CombinePerKey(_sum_summaries)
            | "AllClasses" >> beam.combiners.ToDict()
            | "MakePlan" >> beam.Map(_plan_and_check, job=self.job)
        )


def _summary(ref: ImageRef) -> tuple[str, ClassSummary]:
    row = json.dumps([ref.source_id, ref.class_name, ref.size]).encode()
    hashed = int.from_bytes(hashlib.sha256(row).digest(), "big")
    return ref.class_name, ClassSummary(1, frozenset([ref.split]), hashed, ref.modified)


def _sum_summaries(summaries: Iterable[ClassSummary]) -> ClassSummary:
    return sum(summaries, start=ClassSummary(0, frozenset(), 0))


def _plan_and_check(classes: Mapping[str, ClassSummary], job: Job) -> Plan:
    plan = make_plan(classes, splits=job.splits, images_per_shard=job.images_per_shard)
    content = {
        "settings": job.settings(),
        "input_fingerprint": plan.fingerprint,
        "num_images": sum(plan.num_images.values()),
        "num_shards": sum(plan.num_shards.values()),
    }
    found = _found(job)
    same = found is not None and all(found[key] == content[key] for key in found.keys() & content)
    finished = index.is_finished(job.output)
    if finished and same:
        made = os.stat(os.path.join(job.output, index.INFO_FILE)).st_mtime_ns
        same = plan.newest <= made
    if found is not None and not job.overwrite and not same:
        raise UsageError(
            f"output {job.output}: holds a data set made from other images, or from images that"
            " have changed since; choose another --output, or --overwrite it"
        )
    if finished and same and not job.overwrite:
        commit.remove_work(job.output)
        return plan
    write_file(os.path.join(job.work, commit.PLAN_FILE), json.dumps(content).encode())
    if found is not None and (finished or not same):
        # Only now, when it is sure that there will be another.
        commit.remove_data_set(job.output, found["settings"]["name"])
    return plan


class WriteShards(beam.PTransform):
    """Brings the references of each shard together and writes it; gives the shards' file names.

    A finished data set is left as it is.
    """

    def __init__(self, job: Job, plan: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.plan = plan

    def expand(self, images: beam.PCollection) -> beam.PCollection:
        plan = beam.pvalue.AsSingleton(self.plan)
        return (
            images
            | "ByClass" >> beam.Map(_by_class)
            | "GatherClasses" >> beam.GroupByKey()
            | "PlaceImages" >> beam.FlatMap(_place, plan=plan)
            | "GatherShards" >> beam.GroupByKey()
            | "WriteShard" >> beam.Map(_write_shard, plan=plan, job=self.job)
        )


def _by_class(ref: ImageRef) -> tuple[str, ImageRef]:
    return ref.class_name, ref


def _place(
    images: tuple[str, Iterable[ImageRef]], plan: Plan
) -> Iterator[tuple[tuple[str, int], ImageRef]]:
    name, refs = images
    split = plan.classes[name].split
    for position, ref in enumerate(sorted(refs, key=lambda ref: ref.source_id)):
        yield (split, plan.shard_of(name, position)), ref


def _write_shard(shard: tuple[tuple[str, int], Iterable[ImageRef]], plan: Plan, job: Job) -> str:
    (split, number), refs = shard
    file_name = index.shard_file(job.name, split, number, plan.num_shards[split])
    if not index.is_finished(job.output):
        labelled = ((plan.classes[ref.class_name].label, ref) for ref in refs)
        task = ShardTask(
            file_name=file_name,
            shard=number,
            images=sorted(labelled, key=lambda item: (item[0], item[1].source_id)),
        )
        write_shard(
            task,
            output=job.output,
            work=job.work,
            settings=job.settings(),
            image=job.image,
            threads=job.threads,
        )
    return file_name


class Commit(beam.PTransform):
    """Once every shard is written: index, classes, rejects, and dataset_info.json last."""

    def __init__(self, job: Job, plan: beam.PCollection, left_out: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.plan = plan
        self.left_out = left_out

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return (
            shards
            | "AllShards" >> beam.combiners.ToList()
            | "CommitDataSet"
            >> beam.Map(
                _commit,
                plan=beam.pvalue.AsSingleton(self.plan),
                left_out=beam.pvalue.AsIter(self.left_out),
                job=self.job,
            )
        )


def _commit(shards: Sequence[str], plan: Plan, left_out: Iterable[Rejected], job: Job) -> None:
    if index.is_finished(job.output):
        return
    assert len(shards) == sum(plan.num_shards.values()), "a shard was planned and not written"
    commit.commit(
        plan,
        output=job.output,
        name=job.name,
        settings=job.settings(),
        left_out=left_out,
        max_rejected_share=job.max_rejected_share,
    )
