"""Images to embeddings, with an exported model: List -> Plan -> WriteShards -> Commit.

One task reads, embeds and writes one shard. Killed at any point, the same call goes on from the
finished shards.
"""

import dataclasses
import time
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam import runners
from pipeline.beam.outputs import check_apart, check_output, pipeline_into
from pipeline.embedding.inputs import DatasetRecords, ImageFiles, open_records
from pipeline.embedding.settings import EMBEDDINGS, IMAGES, RECORDS, Job, library_versions
from pipeline.embedding.writing import COUNTERS, READ, REUSED, Commit, WriteShards
from preprocessing.sources.folders import FolderInput
from preprocessing.sources.inputs import open_source, path_of
from preprocessing.sources.manifests import ManifestInput
from preprocessing.sources.tfds import TfdsInput
from preprocessing.sources.tfrecords import RecordsInput
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats import embeddings
from tripletmill.formats.model_card import load_card
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Finished embeddings, and what they took.

    Attributes:
      info: what there is.
      images_embedded: by this run, those that could not be read among them.
      images_reused: that lay in shards from an earlier run of the same job.
      seconds: of the whole job.
      warning: what is odd about the input; "" if nothing.
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
      model: folder of the exported model, or of the run that it was exported from.
      output: folder of the embeddings; made if needed. Local or gs://, as all paths here.
      input: images: a folder of class folders, a folder of images, a list, .csv or .jsonl, whose
        images need no class; tfrecord:PATTERN; or tfds:NAME.
      data: in place of `input`, a data set of `preprocess`.
      splits: of `data`; by default all.
      folder: how a folder is read.
      manifest: how the columns of a list are called.
      records: which features of tfrecord:PATTERN are read.
      tfds: which features of tfds:NAME are read.
      tfds_dir: where data sets of TensorFlow Datasets lie.
      batch_size: images that the model embeds at once, in every batch.
      images_per_shard: a shard's share of `input`, more or less; of `data`, the shards stay.
      max_rejected_share: above this share of unreadable images the job fails, 0 to 1.
      threads: images of `input` decoded at once in a worker; by default the number of its cores.
      overwrite: whether embeddings that lie in `output` may be replaced.
      runner: Beam runner.
      options: Beam options.

    Returns:
      What is in the finished embeddings. If they were there already, made from the same images
      with the same model, nothing is done. None where the options ask for something else, such as
      a template (`runners.instead_of_output`).

    Raises:
      UsageError: model or input cannot be used, or `output` holds something else.
    """
    storage.require_supported(output, "output")
    require_positive("embed", batch_size=batch_size, images_per_shard=images_per_shard)
    if threads is not None:
        require_positive("embed", threads=threads)
    if not 0 <= max_rejected_share <= 1:
        raise UsageError(f"embed.max_rejected_share {max_rejected_share}: 0 to 1")
    if (input is None) == (data is None):
        raise UsageError("either --images or --data_dir (a data set) is needed; see --help")
    if splits is not None and data is None:
        raise UsageError("--splits: only with --data_dir; --images brings its own splits")
    card = load_card(model)
    card = dataclasses.replace(card, directory=storage.absolute(card.directory))
    images: DatasetRecords | ImageFiles
    if data is not None:
        images, kind, read = open_records(data, splits), RECORDS, data
    else:
        assert input is not None
        source = open_source(
            input,
            folder=folder,
            manifest=manifest,
            records=records,
            tfds=tfds,
            tfds_dir=tfds_dir,
            labelled=False,
        )
        images, kind, read = ImageFiles(source), IMAGES, path_of(input, tfds_dir)
    check_apart("input" if data is None else "data", read, output)
    check_apart("model", card.directory, output)
    runners.check_paths(options, input=read, output=output, model=model)
    job = Job(
        model=card,
        kind=kind,
        output=storage.absolute(output),
        batch_size=batch_size,
        images_per_shard=images_per_shard,
        max_rejected_share=max_rejected_share,
        threads=threads,
        overwrite=overwrite,
        versions=library_versions(kind),
    )
    check_output(EMBEDDINGS, job.output, job.settings(), overwrite=overwrite)
    start = time.monotonic()
    with pipeline_into(
        EMBEDDINGS,
        job.output,
        overwrite=overwrite,
        done="embedded",
        runner=runner,
        options=options,
    ) as pipeline:
        build(pipeline, images, job)
    if runners.instead_of_output(options) is not None:
        return None
    return Outcome(
        info=embeddings.load_info(job.output),
        images_embedded=runners.counted(pipeline, COUNTERS, READ),
        images_reused=runners.counted(pipeline, COUNTERS, REUSED),
        seconds=time.monotonic() - start,
        warning=images.warning(card) if isinstance(images, DatasetRecords) else "",
    )


def build(pipeline: beam.Pipeline, images: DatasetRecords | ImageFiles, job: Job) -> None:
    """Puts the steps of a job together."""
    tasks, left_out, planned = images.expand(pipeline, job)
    written = tasks | "WriteShards" >> WriteShards(job, planned)
    _ = written | "Commit" >> Commit(job, planned=planned, left_out=left_out)
