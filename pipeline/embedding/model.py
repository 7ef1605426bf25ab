"""The exported model on a worker, as RunInference takes it."""

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
    """The images of one shard, read.

    Attributes:
      task: the shard's.
      file_name: of the shard.
      claim: the job's.
      images: in order; some of them only with the reason why they are left out.
    """

    task: Task
    file_name: str
    claim: Claim
    images: Sequence[Image]

    @property
    def jpegs(self) -> list[bytes]:
        """Of the images that could be read, in order."""
        return [image.jpeg for image in self.images if isinstance(image.jpeg, bytes)]


class EmbeddingHandler(ModelHandler[LoadedShard, PredictionResult, Any]):
    """Embeds whole shards, in batches that depend on nothing but the shard.

    RunInference would make batches of what a runner happens to bring together, and an image's
    embedding can depend, in its last bits, on its batch's size and on its place in it. So one
    element is one shard, cut here into batches of one size, the last one filled up.
    """

    def __init__(self, card: ModelCard, batch_size: int) -> None:
        super().__init__()
        self._card = card
        self._batch_size = batch_size

    def load_model(self) -> "Model":
        """Called by RunInference once a process, whose threads share what it returns."""
        return Model(self._card, self._batch_size)

    def run_inference(
        self,
        batch: Sequence[LoadedShard],
        model: "Model",
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        """Of each shard: float32 [jpegs, D], rows of NaN for what the model cannot decode."""
        for shard in batch:
            with sidecars.progress(shard.claim.folder, shard.file_name) as progress:
                progress(len(shard.images) - len(shard.jpegs))
                parts = [np.empty((0, self._card.dim), np.float32)]
                for start in range(0, len(shard.jpegs), self._batch_size):
                    some = shard.jpegs[start : start + self._batch_size]
                    parts.append(model.embed(some))
                    progress(len(some))
            yield PredictionResult(shard, np.concatenate(parts))

    def get_num_bytes(self, batch: Sequence[LoadedShard]) -> int:
        """Of the images, for RunInference's metrics."""
        return sum(len(jpeg) for shard in batch for jpeg in shard.jpegs)


class Model:
    """An exported model, loaded when it is first needed.

    A job that finds its shards finished imports no TensorFlow.
    """

    def __init__(self, card: ModelCard, batch_size: int) -> None:
        self._card = card
        self._batch_size = batch_size
        self._loading = threading.Lock()
        self._loaded: Any = None

    def embed(self, jpegs: Sequence[bytes]) -> np.ndarray:
        """Embeds a batch.

        Args:
          jpegs: [n] of 1 to `batch_size`; filled up with the last one.

        Returns:
          [n, D] float32; NaN for an image that the model cannot decode.

        Raises:
          UsageError: TensorFlow is missing; the model cannot be loaded, or gives something else.
        """
        tf, _, signature = self._load()
        padded = [*jpegs, *[jpegs[-1]] * (self._batch_size - len(jpegs))]
        try:
            found = signature(encoded=tf.constant(padded, tf.string))["embedding"].numpy()
        except tf.errors.InvalidArgumentError:
            if len(jpegs) > 1:
                return np.concatenate([self.embed([jpeg]) for jpeg in jpegs])
            return np.full((1, self._card.dim), np.nan, np.float32)
        shape = (self._batch_size, self._card.dim)
        if found.dtype != np.float32 or found.shape != shape:
            raise UsageError(
                f"model {self._card.directory}: gives {found.dtype} {found.shape}, not float32"
                f" {shape}; export it again"
            )
        if not np.isfinite(found).all():
            raise UsageError(
                f"model {self._card.directory}: gives an embedding that is not finite; train again"
            )
        return found[: len(jpegs)]

    def _load(self) -> Any:
        with self._loading:
            if self._loaded is None:
                self._loaded = _load(self._card)
        return self._loaded


def _load(card: ModelCard) -> Any:
    """TensorFlow, the model, which its signature does not keep alive, and the signature."""
    try:
        import_tensorflow()
        import tensorflow as tf
    except ImportError as error:
        raise UsageError(f"TensorFlow cannot be imported on a worker: {error}") from error
    if tf.config.list_physical_devices("GPU"):
        # Without it the GPU's libraries choose a way of computing by what was fastest just now.
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
    """The folder; of a bucket, a copy, so that TensorFlow needs no access of its own."""
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
