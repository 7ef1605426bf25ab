"""Embeds images with an exported model: List -> Plan -> WriteShards -> Commit.

One task reads, embeds and writes one shard. A job may be killed at any point: the same call
continues from the finished shards.
"""

import dataclasses
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam.execution import check_paths, run_pipeline
from pipeline.embedding.inputs import DatasetRecords, ImageFiles, open_records
from pipeline.embedding.settings import Job, library_versions
from pipeline.embedding.writing import commit_embeddings, write_shards
from preprocessing.sources.folders import FolderInput
from preprocessing.sources.inputs import InputOptions, open_source, path_of
from preprocessing.sources.manifests import ManifestInput
from preprocessing.sources.tfds import TfdsInput
from preprocessing.sources.tfrecords import RecordsInput
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings
from tripletmill.formats.model_card import load_card
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Finished embeddings, and what the job did.

    Attributes:
      info: description of the embeddings.
      images_embedded: images that this job read, including those that it could not use.
      images_reused: images in shards that an earlier, unfinished job had written.
      seconds: duration of the job.
      warning: what is unusual about the input; "" if nothing is.
    """

    info: embeddings.EmbeddingsInfo
    images_embedded: int
    images_reused: int
    seconds: float
    warning: str


def embed(
    *,
    model: str,
    output: str,
    input: str | None = None,
    data: str | None = None,
    splits: Sequence[str] | None = None,
    folder: FolderInput = FolderInput(),  # noqa: B008 (frozen)
    manifest: ManifestInput = ManifestInput(),  # noqa: B008
    records: RecordsInput = RecordsInput(),  # noqa: B008
    tfds: TfdsInput = TfdsInput(),  # noqa: B008
    tfds_dir: str | None = None,
    batch_size: int = 64,
    images_per_shard: int = 1000,
    max_rejected_share: float = 0.05,
    threads: int | None = None,
    overwrite: bool = False,
    runner: PipelineRunner,
    options: PipelineOptions,
) -> Outcome | None:
    """Embeds images with an exported model.

    Args:
      model: folder of the exported model, or of the run that it was exported from. All paths are
        local or gs:// paths.
      output: folder of the embeddings, which is created if it does not exist.
      input: the images: a folder of class folders; a folder of images; a manifest (.csv or .jsonl)
        whose images need no class; tfrecord:PATTERN; or tfds:NAME.
      data: in place of `input`, a data set of `preprocess`.
      splits: splits of `data` to embed; None for all.
      folder: how a folder is read; see `InputOptions` for this and the next four options.
      manifest: names of the columns of a manifest.
      records: which features of tfrecord:PATTERN are read.
      tfds: which features of tfds:NAME are read.
      tfds_dir: folder in which the data sets of TensorFlow Datasets were prepared.
      batch_size: number of images that the model embeds at once, in every batch.
      images_per_shard: approximate number of images of `input` in one output file (shard). The
        shards of `data` stay as they are.
      max_rejected_share: the job fails if a larger share of the images cannot be used, 0 to 1.
      threads: number of images of `input` that a worker decodes at once; None for its number of
        cores.
      overwrite: whether the job may replace embeddings in `output`.
      runner: Beam runner.
      options: Beam options.

    Returns:
      The finished embeddings. If they were already made from the same images with the same model,
      the job does nothing. None if the Beam options ask for something else than a finished job,
      such as a template (`runners.instead_of_output`).

    Raises:
      UsageError: a setting, the model or the input cannot be used, or `output` holds something
        else.
    """
    storage.require_supported(output, "output")
    input_options = InputOptions(folder, manifest, records, tfds, tfds_dir)
    images = _open_images(input, data, splits, input_options)
    card = load_card(model)
    card = dataclasses.replace(card, directory=storage.absolute(card.directory))
    check_paths(options, **images.paths(), model=card.directory, output=output)
    job = Job(
        model=card,
        kind=images.kind,
        output=storage.absolute(output),
        batch_size=batch_size,
        images_per_shard=images_per_shard,
        max_rejected_share=max_rejected_share,
        threads=threads,
        overwrite=overwrite,
        versions=library_versions(images.kind),
    )
    run = run_pipeline(job, lambda pipeline: build(pipeline, images, job), runner, options)
    if run is None:
        return None
    info, warning = embeddings.load_info(job.output), images.warning(card)
    return Outcome(info, run.images_read, run.images_reused, run.seconds, warning)


def _open_images(
    input: str | None, data: str | None, splits: Sequence[str] | None, options: InputOptions
) -> DatasetRecords | ImageFiles:
    if (input is None) == (data is None):
        raise UsageError("either --images or --data_dir (a data set) is needed; see --help")
    if splits is not None and data is None:
        raise UsageError("--splits: only with --data_dir; --images brings its own splits")
    if data is not None:
        return open_records(data, splits)
    assert input is not None
    source = open_source(input, options, labelled=False)
    return ImageFiles(source, path_of(input, options))


def build(pipeline: beam.Pipeline, images: DatasetRecords | ImageFiles, job: Job) -> None:
    """Adds the steps of a job to a pipeline."""
    tasks, left_out, planned = images.expand(pipeline, job)
    shards = tasks | "WriteShards" >> write_shards(job, planned)
    _ = shards | "Commit" >> commit_embeddings(job, planned=planned, left_out=left_out)
