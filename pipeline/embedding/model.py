"""Runs the exported model on a worker, through Beam's RunInference."""

import contextlib
import dataclasses
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from pipeline.embedding.tasks import Image, Task
from preprocessing.writing import sidecars
from preprocessing.writing.claim import Claim
from tripletmill.cli.notices import import_tensorflow
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import ModelCard
from tripletmill.storage import bucket, storage


@dataclasses.dataclass(frozen=True)
class LoadedShard:
    """A shard whose images have been read.

    Attributes:
      task: task of the shard.
      file_name: file name of the shard.
      claim: claim of the job.
      images: all images, in order. An image that is left out has a reason instead of a JPEG.
    """

    task: Task
    file_name: str
    claim: Claim
    images: Sequence[Image]

    @property
    def jpegs(self) -> list[bytes]:
        """JPEGs of the images that could be read, in order."""
        return [image.jpeg for image in self.images if isinstance(image.jpeg, bytes)]


class EmbeddingHandler(ModelHandler[LoadedShard, PredictionResult, Any]):
    """Embeds whole shards.

    RunInference makes batches of the elements that a runner happens to bring together. But the last
    bits of an embedding can depend on the size of its batch and on its place in the batch. So one
    element is a whole shard, and the handler cuts it into batches of one size. The last batch is
    filled up. The batches depend on nothing but the shard.
    """

    def __init__(self, card: ModelCard, batch_size: int) -> None:
        super().__init__()
        self._card = card
        self._batch_size = batch_size

    def load_model(self) -> "Model":
        """Returns the model.

        RunInference calls this once per process. All threads of the process share the model.
        """
        return Model(self._card, self._batch_size)

    def run_inference(
        self,
        batch: Sequence[LoadedShard],
        model: "Model",
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        """Yields the embeddings of each shard: [number of JPEGs, D] float32.

        The row of an image that the model cannot decode is NaN.
        """
        for shard in batch:
            with sidecars.progress(shard.claim.folder, shard.file_name) as progress:
                progress(len(shard.images) - len(shard.jpegs))
                parts = [np.empty((0, self._card.dim), np.float32)]
                for start in range(0, len(shard.jpegs), self._batch_size):
                    jpegs = shard.jpegs[start : start + self._batch_size]
                    parts.append(model.embed(jpegs))
                    progress(len(jpegs))
            yield PredictionResult(shard, np.concatenate(parts))

    def get_num_bytes(self, batch: Sequence[LoadedShard]) -> int:
        """Returns the size of the images, for the metrics of RunInference."""
        return sum(len(jpeg) for shard in batch for jpeg in shard.jpegs)


class Model:
    """An exported model, which is loaded when it is first needed.

    So a job that finds all its shards finished does not import TensorFlow.
    """

    def __init__(self, card: ModelCard, batch_size: int) -> None:
        self._card = card
        self._batch_size = batch_size
        self._loading = threading.Lock()
        self._loaded: Any = None

    def embed(self, jpegs: Sequence[bytes]) -> np.ndarray:
        """Embeds a batch.

        Args:
          jpegs: [n] JPEGs, 1 to `batch_size`. The batch is filled up with copies of the last one.

        Returns:
          [n, D] float32. The row of an image that the model cannot decode is NaN.

        Raises:
          UsageError: TensorFlow is missing, the model cannot be loaded, or its embeddings are of
            another shape or type, or not finite.
        """
        tf, _, signature = self._load()
        padded = [*jpegs, *[jpegs[-1]] * (self._batch_size - len(jpegs))]
        try:
            embedded = signature(encoded=tf.constant(padded, tf.string))["embedding"].numpy()
        except tf.errors.InvalidArgumentError:
            if len(jpegs) > 1:
                return np.concatenate([self.embed([jpeg]) for jpeg in jpegs])
            return np.full((1, self._card.dim), np.nan, np.float32)
        shape = (self._batch_size, self._card.dim)
        if embedded.dtype != np.float32 or embedded.shape != shape:
            raise UsageError(
                f"model {self._card.directory}: gives {embedded.dtype} {embedded.shape}, not"
                f" float32 {shape}; export it again"
            )
        if not np.isfinite(embedded).all():
            raise UsageError(
                f"model {self._card.directory}: gives an embedding that is not finite; train again"
            )
        return embedded[: len(jpegs)]

    def _load(self) -> Any:
        with self._loading:
            if self._loaded is None:
                self._loaded = _load(self._card)
        return self._loaded


def _load(card: ModelCard) -> Any:
    """Returns TensorFlow, the model and its signature, which does not keep the model alive."""
    try:
        import_tensorflow()
        import tensorflow as tf
    except ImportError as error:
        raise UsageError(f"TensorFlow cannot be imported on a worker: {error}") from error
    if tf.config.list_physical_devices("GPU"):
        # Otherwise the libraries of a GPU choose an algorithm by its speed on the first run, and
        # the last bits of the embeddings differ from run to run.
        tf.config.experimental.enable_op_determinism()
    try:
        with _on_disk(card.saved_model) as folder:
            model = tf.saved_model.load(folder)
        return tf, model, model.signatures["serving_default"]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(f"{card.saved_model}: cannot be loaded ({text})") from error


@contextlib.contextmanager
def _on_disk(folder: str) -> Iterator[str]:
    """Yields a local folder: the folder itself, or a copy if it is in a bucket.

    TensorFlow would need its own access to the bucket.
    """
    if not storage.is_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for info in bucket.list_tree(folder):
            path = os.path.join(copy, info.path.removeprefix(f"{folder}/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(storage.read(info.path))
        yield copy
