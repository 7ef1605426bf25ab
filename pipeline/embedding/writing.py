"""Reads, embeds and writes one shard at a time, and commits the embeddings."""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import PredictionResult, RunInference

from pipeline.beam.execution import count_images
from pipeline.embedding.inputs import Planned
from pipeline.embedding.model import EmbeddingHandler, LoadedShard
from pipeline.embedding.settings import Job, remove_shards
from preprocessing.sources.references import Rejected
from preprocessing.writing import commit, sidecars
from tripletmill.formats import embeddings, index
from tripletmill.storage import storage


class WriteShards(beam.PTransform):
    """Writes the shard of each task. The results are the file names of shards that were written.

    None of its steps shuffles, so that a worker writes a shard before it reads the next one.
    """

    def __init__(self, job: Job, planned: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.planned = planned

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        handler = EmbeddingHandler(self.job.model, self.job.batch_size)
        return (
            tasks
            | "Read"
            >> beam.FlatMap(_read, planned=beam.pvalue.AsSingleton(self.planned), job=self.job)
            | "RunInference" >> RunInference(handler.with_no_batching())
            | "Write" >> beam.Map(_write, job=self.job)
        )


# The task is Any, not Task: Beam checks annotations, and cannot check a protocol with attributes.
def _read(task: Any, planned: Planned, job: Job) -> Iterator[list[LoadedShard]]:
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


class Commit(beam.PTransform):
    """Writes the rejected files, and embeddings_info.json last, when every shard is written."""

    def __init__(self, job: Job, *, planned: beam.PCollection, left_out: beam.PCollection) -> None:
        super().__init__()
        self.job = job
        self.planned = planned
        self.left_out = left_out

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return (
            shards
            | "AllShards" >> beam.combiners.ToList()
            | "CommitEmbeddings"
            >> beam.Map(
                _commit,
                planned=beam.pvalue.AsSingleton(self.planned),
                left_out=beam.pvalue.AsIter(self.left_out),
                job=self.job,
            )
        )


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
        num_listed=input.num_images + input.num_lost,
        max_share=job.max_rejected_share,
        output=job.output,
        empty="" if num_rows else "the input",
    )
    remove_shards(job.output, keep={*files})
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
