"""Images to class-grouped TFRecords: List -> Deduplicate -> Plan -> WriteShards -> Commit.

Listing and planning move references to images, never pixels. One task writes one shard. Killed at
any point, the same call goes on from the finished shards.
"""

import dataclasses
import re

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam import runners
from pipeline.beam.outputs import check_apart, check_output, pipeline_into
from pipeline.preprocess.deduplicate import Deduplicate
from pipeline.preprocess.listing import AssignSplits, List, MakeListing
from pipeline.preprocess.settings import DATA_SET, Job
from pipeline.preprocess.writing import COUNTERS, READ, REUSED, Commit, MakePlan, WriteShards
from preprocessing.sources.folders import FolderInput
from preprocessing.sources.inputs import open_source, path_of
from preprocessing.sources.manifests import ManifestInput
from preprocessing.sources.references import Source
from preprocessing.sources.tfds import TfdsInput
from preprocessing.sources.tfrecords import RecordsInput
from preprocessing.splits import HashSplits, SplitRule
from preprocessing.writing import duplicates as duplicate_images
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.images import ImageSettings
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished data set, and what it took.

    Attributes:
      info: what is in it.
      images_read: by this run.
      images_reused: that lay in shards from an earlier run of the same job.
    """

    info: index.DatasetInfo
    images_read: int
    images_reused: int


def preprocess(
    *,
    input: str,
    output: str,
    name: str | None = None,
    folder: FolderInput = FolderInput(),  # noqa: B008 (frozen)
    manifest: ManifestInput = ManifestInput(),  # noqa: B008
    records: RecordsInput = RecordsInput(),  # noqa: B008
    tfds: TfdsInput = TfdsInput(),  # noqa: B008
    tfds_dir: str | None = None,
    short_side: int = 256,
    quality: int = 90,
    background: tuple[int, int, int] = (255, 255, 255),
    splits: SplitRule | None = None,
    duplicates: str = "keep",
    min_images: int = 1,
    images_per_shard: int = 1000,
    max_rejected_share: float = 0.05,
    threads: int | None = None,
    overwrite: bool = False,
    runner: PipelineRunner,
    options: PipelineOptions,
) -> Outcome | None:
    """Makes a data set from labelled images.

    Args:
      input: a folder; a list, .csv or .jsonl; tfrecord:PATTERN; or tfds:NAME. Local or gs://.
      output: folder of the data set; made if needed. Local or gs://.
      name: first part of the file names; by default the last part of `output`.
      folder: how a folder is read.
      manifest: how the columns of a list are called.
      records: which features of tfrecord:PATTERN are read.
      tfds: which features of tfds:NAME are read.
      tfds_dir: where data sets of TensorFlow Datasets lie.
      short_side: of the canonical JPEGs, pixels.
      quality: of the canonical JPEGs, 1 to 100.
      background: RGB colour that transparent images are laid over, 0 to 255 each.
      splits: which class goes to which split, where the input does not say; by default a stable
        hash of the name, 80 % train, 10 % val, 10 % test.
      duplicates: what becomes of exact duplicates: "keep" (all are listed), "drop" (the first of a
        class stays, train's go that are in a held-out split too, and all that are in two classes)
        or "error".
      min_images: classes with fewer are left out.
      images_per_shard: a shard's share of images.
      max_rejected_share: above this share of unreadable images the job fails, 0 to 1.
      threads: images decoded at once in a worker; by default the number of its cores.
      overwrite: whether a data set that lies in `output` may be replaced.
      runner: Beam runner.
      options: Beam options.

    Returns:
      What is in the finished data set. If it was there already, made from the same images with
      the same settings, nothing is done. None where the options ask for something else, such as
      a template (`runners.instead_of_output`).

    Raises:
      UsageError: the input cannot be used, or `output` holds something else.
    """
    storage.require_supported(output, "output")
    for value, valid, what in (
        (images_per_shard, images_per_shard >= 1, "images_per_shard: at least 1"),
        (min_images, min_images >= 1, "min_images: at least 1"),
        (threads, threads is None or threads >= 1, "threads: at least 1"),
        (max_rejected_share, 0 <= max_rejected_share <= 1, "max_rejected_share: 0 to 1"),
    ):
        if not valid:
            raise UsageError(f"{what}, not {value}")
    if duplicates not in duplicate_images.POLICIES:
        raise UsageError(f"duplicates: {', '.join(duplicate_images.POLICIES)}, not {duplicates!r}")
    if splits is not None and (isinstance(splits, type) or not isinstance(splits, SplitRule)):
        raise UsageError(
            f"preprocess.splits: @HashSplits(), @SortedSplits() or @QueryGallery(), not {splits!r}"
        )
    source = open_source(
        input, folder=folder, manifest=manifest, records=records, tfds=tfds, tfds_dir=tfds_dir
    )
    read = path_of(input, tfds_dir)
    check_apart("input", read, output)
    runners.check_paths(options, input=read, output=output)
    job = Job(
        columns=tuple(source.columns),
        group=source.group,
        output=storage.absolute(output),
        name=_data_set_name(name, output),
        image=ImageSettings(short_side=short_side, quality=quality, background=background),
        splits=splits or HashSplits(),
        duplicates=duplicates,
        min_images=min_images,
        images_per_shard=images_per_shard,
        max_rejected_share=max_rejected_share,
        threads=threads,
        overwrite=overwrite,
    )
    check_output(DATA_SET, job.output, job.settings(), overwrite=job.overwrite)
    with pipeline_into(
        DATA_SET,
        job.output,
        overwrite=overwrite,
        done="preprocessed",
        runner=runner,
        options=options,
    ) as pipeline:
        build(pipeline, source, job)
    if runners.instead_of_output(options) is not None:
        return None
    return Outcome(
        info=index.load_info(job.output),
        images_read=runners.counted(pipeline, COUNTERS, READ),
        images_reused=runners.counted(pipeline, COUNTERS, REUSED),
    )


def build(pipeline: beam.Pipeline, source: Source, job: Job) -> None:
    """Puts the steps of a job together."""
    listed = pipeline | "List" >> List(source)
    start = listed | "Listing" >> MakeListing(job)
    images = listed | "Splits" >> AssignSplits(start)
    kept, verdict = images | "Deduplicate" >> Deduplicate(job, start)
    planned = kept | "Plan" >> MakePlan(job, start, verdict)
    written = kept | "WriteShards" >> WriteShards(job, planned)
    _ = written | "Commit" >> Commit(job, kept, start=start, verdict=verdict, planned=planned)


def _data_set_name(name: str | None, output: str) -> str:
    last = storage.absolute(output).rpartition("/")[2]
    name = name or re.sub(r"[^a-z0-9_]+", "_", last.lower())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"name {name!r}: a letter, then lower-case letters, digits and underscores; set --name"
        )
    return name
