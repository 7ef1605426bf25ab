"""Turns images into class-grouped TFRecords: List -> Deduplicate -> Plan -> WriteShards -> Commit.

List, Deduplicate and Plan move references to images between workers, but no pixels. One task writes
one shard. A job may be killed at any point: the same call continues from the finished shards.
"""

import dataclasses
import re

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam.execution import check_paths, run_pipeline
from pipeline.preprocess.deduplicate import deduplicate
from pipeline.preprocess.listing import assign_splits, list_files, summarize_input
from pipeline.preprocess.settings import Job
from pipeline.preprocess.writing import commit_data_set, plan_shards, write_shards
from preprocessing.sources.folders import FolderInput
from preprocessing.sources.inputs import InputOptions, open_source, path_of
from preprocessing.sources.manifests import ManifestInput
from preprocessing.sources.references import Source
from preprocessing.sources.tfds import TfdsInput
from preprocessing.sources.tfrecords import RecordsInput
from preprocessing.splits import HashSplits, SplitRule
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.images import ImageSettings
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished data set, and what the job did.

    Attributes:
      info: description of the data set.
      images_read: images that this job read, including those that it could not use.
      images_reused: images in shards that an earlier, unfinished job had written.
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
      input: folder, manifest (.csv, .jsonl), tfrecord:PATTERN or tfds:NAME; local or gs://.
      output: folder of the data set, which is created if it does not exist; local or gs://.
      name: first part of the file names; None for the last part of `output`.
      folder: how a folder is read; see `InputOptions` for this and the next four options.
      manifest: names of the columns of a manifest.
      records: which features of tfrecord:PATTERN are read.
      tfds: which features of tfds:NAME are read.
      tfds_dir: folder in which the data sets of TensorFlow Datasets were prepared.
      short_side: short side of the canonical JPEGs, pixels.
      quality: quality of the canonical JPEGs, 1 to 100.
      background: RGB colour behind transparent images, 0 to 255 each.
      splits: assigns classes to splits if the input names no splits. None for a stable hash of the
        class name: 80 % of the classes in train, 10 % in val, 10 % in test.
      duplicates: what to do with exact duplicates. "keep" keeps them and lists them. "drop" keeps
        one image per class, removes images from train that are also in a held-out split, and
        removes images that are in two classes. "error" stops the job.
      min_images: classes with fewer images are left out.
      images_per_shard: approximate number of images in one output file (shard).
      max_rejected_share: the job fails if a larger share of the images cannot be used, 0 to 1.
      threads: number of images that a worker decodes at once; None for its number of cores.
      overwrite: whether the job may replace a data set in `output`.
      runner: Beam runner.
      options: Beam options.

    Returns:
      The finished data set. If it was already made from the same images with the same settings,
      the job does nothing. None if the Beam options ask for something else than a finished job,
      such as a template (`runners.instead_of_output`).

    Raises:
      UsageError: a setting or the input cannot be used, or `output` holds something else.
    """
    storage.require_supported(output, "output")
    input_options = InputOptions(folder, manifest, records, tfds, tfds_dir)
    source = open_source(input, input_options)
    check_paths(options, input=path_of(input, input_options), output=output)
    job = Job(
        columns=tuple(source.columns),
        group=source.group,
        output=storage.absolute(output),
        name=_data_set_name(name, output),
        image=ImageSettings(short_side=short_side, quality=quality, background=background),
        splits=HashSplits() if splits is None else splits,
        duplicates=duplicates,
        min_images=min_images,
        images_per_shard=images_per_shard,
        max_rejected_share=max_rejected_share,
        threads=threads,
        overwrite=overwrite,
    )
    run = run_pipeline(job, lambda pipeline: build(pipeline, source, job), runner, options)
    if run is None:
        return None
    return Outcome(index.load_info(job.output), run.images_read, run.images_reused)


def build(pipeline: beam.Pipeline, source: Source, job: Job) -> None:
    """Adds the steps of a job to a pipeline."""
    files = pipeline | "List" >> list_files(source)
    listed_input = files | "Listing" >> summarize_input(job)
    listed = beam.pvalue.AsSingleton(listed_input)
    images = files | "Splits" >> beam.FlatMap(assign_splits, listed)
    kept, decision = images | "Deduplicate" >> deduplicate(job, listed_input)
    planned = kept | "Plan" >> plan_shards(job, listed_input, decision)
    shards = kept | "WriteShards" >> write_shards(job, planned)
    _ = shards | "Commit" >> commit_data_set(
        job, kept, listed_input=listed_input, decision=decision, planned=planned
    )


def _data_set_name(name: str | None, output: str) -> str:
    last_part = storage.absolute(output).rpartition("/")[2]
    name = name or re.sub(r"[^a-z0-9_]+", "_", last_part.lower())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"name {name!r}: a letter, then lower-case letters, digits and underscores; set --name"
        )
    return name
