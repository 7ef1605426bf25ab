"""Reads, embeds and writes one shard at a time, and commits the embeddings."""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import PredictionResult, RunInference

from pipeline.beam.execution import count_images
from pipeline.embedding.inputs import Planned
from pipeline.embedding.model import EmbeddingHandler, LoadedShard
from pipeline.embedding.settings import SHARDS, Job
from pipeline.embedding.tasks import Task
from preprocessing.sources.references import Rejected
from preprocessing.writing import commit, sidecars
from tripletmill.formats import embeddings, index
from tripletmill.storage import storage


@beam.ptransform_fn
def write_shards(tasks: beam.PCollection, job: Job, planned: beam.PCollection) -> beam.PCollection:
    """Writes the shard of each task. The results are the file names of shards that were written.

    None of its steps shuffles, so that a worker writes a shard before it reads the next one.
    """
    handler = EmbeddingHandler(job.model, job.batch_size)
    return (
        tasks
        | "Read" >> beam.FlatMap(_read, beam.pvalue.AsSingleton(planned), job)
        | "RunInference" >> RunInference(handler.with_no_batching())
        | "Write" >> beam.Map(_write, job)
    )


def _read(task: Task, planned: Planned, job: Job) -> Iterator[list[LoadedShard]]:
    """Yields a batch of one shard, unless the shard is already finished."""
    if planned.claim is None:
        return
    job.check_versions()
    file_name = embeddings.shard_file(task.number, planned.input.num_shards)
    if sidecars.is_finished(planned.claim, file_name, task.fingerprint(job.settings())):
        with sidecars.progress(planned.claim.folder, file_name) as progress:
            progress(task.count)
        count_images(reused=task.count)
        return
    images = tuple(task.read(job.model.image, threads=job.threads_here))
    yield [LoadedShard(task, file_name, planned.claim, images)]


def _write(result: PredictionResult, job: Job) -> str:
    shard: LoadedShard = result.example
    rejected = [
        Rejected(image.source_id, image.class_name or "", image.jpeg)
        for image in shard.images
        if isinstance(image.jpeg, str)
    ]
    images = [image for image in shard.images if isinstance(image.jpeg, bytes)]
    decoded = ~np.isnan(result.inference).any(axis=1)
    for image, is_decoded in zip(images, decoded, strict=True):
        if not is_decoded:
            reason = "the model cannot decode it"
            rejected.append(Rejected(image.source_id, image.class_name or "", reason))
    kept = [image for image, is_decoded in zip(images, decoded, strict=True) if is_decoded]
    table = embeddings.make_table(
        source_id=[image.source_id for image in kept],
        split=[image.split for image in kept],
        label=[image.label for image in kept],
        class_name=[image.class_name for image in kept],
        embedding=result.inference[decoded],
    )

    def content(file: BinaryIO) -> tuple[pa.Table, Sequence[Rejected]]:
        data = io.BytesIO()
        embeddings.write_table(table, data)
        file.write(data.getvalue())
        return table.select(["source_id"]), rejected

    fingerprint = shard.task.fingerprint(job.settings())
    sidecars.write(shard.claim, shard.file_name, fingerprint, content)
    count_images(read=len(shard.images))
    return shard.file_name


@beam.ptransform_fn
def commit_embeddings(
    shards: beam.PCollection, job: Job, *, planned: beam.PCollection, left_out: beam.PCollection
) -> beam.PCollection:
    """Writes the rejected files, and embeddings_info.json last, when every shard is written."""
    planned, left_out = beam.pvalue.AsSingleton(planned), beam.pvalue.AsIter(left_out)
    all_shards = shards | "AllShards" >> beam.combiners.ToList()
    return all_shards | "CommitEmbeddings" >> beam.Map(_commit, planned, left_out, job)


def _commit(_: Sequence[str], planned: Planned, left_out: Iterable[Rejected], job: Job) -> None:
    claim, input = planned.claim, planned.input
    if claim is None or embeddings.is_finished(job.output):
        # The embeddings were finished before the job, or the runner runs the step twice.
        return
    rejected = list(left_out)
    files = [embeddings.shard_file(number, input.num_shards) for number in range(input.num_shards)]
    shards = []
    for file, sidecar in zip(files, sidecars.read_sidecars(claim, files), strict=True):
        rows = len(sidecar.rows)
        shards.append(embeddings.Shard(file, rows, sidecar.num_bytes, sidecar.crc32c))
        rejected.extend(sidecar.rejected)
    num_rows = sum(shard.rows for shard in shards)
    path = storage.join(job.output, index.REJECTED_FILE)
    storage.write_file(path, commit.rejected_lines(rejected))
    commit.check_rejected(
        [r for r in rejected if r.lost],
        num_listed=input.total.count + input.total.lost,
        max_share=job.max_rejected_share,
        output=job.output,
        empty="" if num_rows else "the input",
    )
    commit.remove_shards(job.output, SHARDS, keep=files)
    claim.check()
    info = embeddings.EmbeddingsInfo(
        directory=job.output,
        model=job.model.fingerprint,
        dim=job.model.dim,
        num_rows=num_rows,
        num_rejected=len(rejected),
        shards=shards,
        input=input.description,
        settings=job.settings(),
    )
    path = storage.join(job.output, embeddings.INFO_FILE)
    storage.write_file(path, embeddings.info_json(info))
    commit.remove_work(job.output)
