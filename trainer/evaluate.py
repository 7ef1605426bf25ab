"""Retrieval on the classes of a split: the trained model beside what it began with."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError, require_positive
from preprocessing.index import DatasetIndex, load_index
from preprocessing.progress import Progress
from preprocessing.storage import atomic_file, require_local, write_file
from trainer.checkpoints import Checkpoints, is_data_of
from trainer.contact_sheet import Tile, choose_queries, contact_sheet
from trainer.input import evaluation_batches
from trainer.retrieval import RetrievalMetrics, nearest_neighbours, retrieval_metrics

FOLDER = "evaluation"
RECALL_AT = (1, 2, 4, 8)
PIXEL_SIDE = 16


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """How evaluation sees the images of a split.

    Attributes:
      index: the records.
      image_size: side of the square images, pixels.
      central_share: side of the central square that is kept, as a share of the short side.
      batch_size: images at a time.
    """

    index: DatasetIndex
    image_size: int
    central_share: float
    batch_size: int

    def batches(self, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Images [batch, S, S, 3] uint8 of these rows, of all by default, in order."""
        return evaluation_batches(
            self.index,
            np.arange(len(self.index)) if rows is None else rows,
            image_size=self.image_size,
            central_share=self.central_share,
            batch_size=self.batch_size,
        )

    def map(self, function: Callable[[tf.Tensor], tf.Tensor], what: str) -> np.ndarray:
        """Applies a function of image batches to all images, [N, ...], showing progress."""
        results: list[np.ndarray] = []
        with Progress() as progress:
            for batch in self.batches():
                results.append(np.asarray(function(batch)))
                done = min(len(results) * self.batch_size, len(self.index))
                progress.update(f"{what}: {done:,} of {len(self.index):,} images")
        return np.concatenate(results)

    def metrics(self, embeddings: np.ndarray) -> RetrievalMetrics:
        """Of embeddings [N, D] of all images, each a query against all others."""
        return retrieval_metrics(embeddings, self.index.label, recall_at=RECALL_AT)


def forward_function(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A model's forward pass, compiled once for batches of any size."""
    signature = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
    return tf.function(lambda images: model(images, training=False), input_signature=[signature])


def embed(forward: Callable[[tf.Tensor], tf.Tensor], images: ImageReader, what: str) -> np.ndarray:
    """Embeddings [N, D] float32 of all images; raises UsageError if one is not finite."""
    embeddings = images.map(forward, what)
    bad = np.count_nonzero(~np.isfinite(embeddings).all(axis=1))
    if bad:
        raise UsageError(
            f"{what}: {bad} of {len(embeddings)} embeddings are not finite, the model has diverged;"
            " lower the learning rate"
        )
    return embeddings


def measure(
    forward: Callable[[tf.Tensor], tf.Tensor], images: ImageReader, what: str
) -> RetrievalMetrics:
    """Retrieval metrics of a model's forward pass."""
    return images.metrics(embed(forward, images, what))


def evaluate(
    *,
    data_dir: str,
    model_dir: str,
    build_model: Callable[..., keras.Model],
    split: str = "test",
    central_share: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    num_queries: int = 12,
    num_neighbours: int = 8,
    check_only: bool = False,
) -> None:
    """Evaluates the best checkpoint of a run beside raw pixels and the untrained model.

    Prints a table; writes it to model_dir/evaluation/SPLIT.json, and a contact sheet of queries
    with their nearest neighbours beside it.

    Args:
      data_dir: a finished data set.
      model_dir: folder of the run.
      build_model: makes the model; takes embedding_dim=None for the backbone's features alone.
      split: whose classes.
      central_share: side of the central square that is kept, as a share of the short side.
      batch_size: images at a time.
      seed: the one that training began with, so that the untrained model is the one it began with.
      num_queries: rows of the contact sheet.
      num_neighbours: its columns.
      check_only: only sees that all that is asked for can be had, before a long training.

    Raises:
      UsageError: no such data set or split, no class of two images in it, or no checkpoint.
    """
    require_local(data_dir, "data_dir")
    require_local(model_dir, "model_dir")
    require_positive(
        "evaluate",
        batch_size=batch_size,
        num_queries=num_queries,
        num_neighbours=num_neighbours,
    )
    check_central_share(central_share)
    index = load_index(data_dir, split)
    index.class_names()
    if not has_queries(index):
        raise UsageError(f"data_dir {data_dir}: no class of {split} has two images")
    if check_only:
        return
    if not Checkpoints.exist(model_dir):
        raise UsageError(f"model_dir {model_dir}: no checkpoint to evaluate; train first")

    def untrained(**changes: None) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return build_model(**changes)

    model = untrained()
    forward = forward_function(model)
    images = ImageReader(index, int(model.input_shape[1]), central_share, batch_size)
    before = measure(forward, images, "model before training")
    step = Checkpoints(model_dir, model).restore_best()
    embeddings = embed(forward, images, "trained model")
    backbone = forward_function(untrained(embedding_dim=None))
    pixels = images.map(raw_pixels, "raw pixels")
    results = {
        "raw pixels": images.metrics(pixels),
        "backbone before training": measure(backbone, images, "backbone before training"),
        "model before training": before,
        "trained model": images.metrics(embeddings),
    }

    folder = os.path.join(model_dir, FOLDER)
    os.makedirs(folder, exist_ok=True)
    # A run's own data set needs no name; another's figures must not take its place.
    own = is_data_of(model_dir, index.info)
    name = split if own else f"{index.info.name}-{split}"
    table, sheet = (os.path.join(folder, f"{name}{end}") for end in (".json", "-neighbours.png"))
    _write_table(table, split, step, results)
    _write_sheet(sheet, embeddings, images, num_queries, num_neighbours)
    _print_table(split, step, results)
    command = f"python -m trainer.main --mode=evaluate --model_dir={shlex.quote(model_dir)}"
    print(f"next: the same on other images: {command} --data_dir=OTHER")
    print(f"wrote {table}\nwrote {sheet}")


def has_queries(index: DatasetIndex) -> bool:
    """Whether a class of the split has two images, so that one can be found by the other."""
    return bool(len(index)) and int(np.unique(index.label, return_counts=True)[1].max()) >= 2


def check_central_share(value: float) -> None:
    """Raises UsageError unless above 0 and at most 1."""
    if not 0 < value <= 1:
        raise UsageError(f"central_share {value}: above 0, at most 1")


def raw_pixels(images: tf.Tensor) -> tf.Tensor:
    """Images [batch, S, S, 3] -> [batch, 768]: shrunk to 16 x 16, compared as they are."""
    small = tf.image.resize(tf.cast(images, tf.float32), [PIXEL_SIDE] * 2, method="area")
    return tf.reshape(small, [tf.shape(small)[0], -1])


def numbers(metrics: RetrievalMetrics) -> dict[str, float]:
    """Metrics by name, for tables and logs."""
    recall = {f"recall_at_{k}": value for k, value in metrics.recall.items()}
    return {**recall, "map_at_r": metrics.map_at_r, "r_precision": metrics.r_precision}


def _write_table(path: str, split: str, step: int, results: Mapping[str, RetrievalMetrics]) -> None:
    any_result = next(iter(results.values()))
    content = {
        "split": split,
        "step": step,
        "num_classes": any_result.num_classes,
        "num_queries": any_result.num_queries,
        "num_without_match": any_result.num_without_match,
        "results": {name: numbers(metrics) for name, metrics in results.items()},
    }
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _print_table(split: str, step: int, results: Mapping[str, RetrievalMetrics]) -> None:
    any_result = next(iter(results.values()))
    print(
        f"\n{split}: {any_result.num_queries:,} images of {any_result.num_classes:,} classes, each"
        f" a query against all others; model of step {step:,}"
    )
    if any_result.num_without_match:
        print(f"  {any_result.num_without_match:,} images alone in their class are no queries")
    heads = [*(f"Recall@{k}" for k in RECALL_AT), "MAP@R", "R-prec."]
    print(f"  {'':26}" + "".join(f"{head:>10}" for head in heads))
    for name, metrics in results.items():
        values = numbers(metrics).values()
        print(f"  {name:26}" + "".join(f"{value:>10.3f}" for value in values))


def _write_sheet(
    path: str, embeddings: np.ndarray, images: ImageReader, num_queries: int, num_neighbours: int
) -> None:
    index = images.index
    queries = choose_queries(index.label, num=num_queries)
    neighbours = nearest_neighbours(embeddings, num_neighbours, queries=queries).rows
    wanted = np.unique(np.concatenate([queries, neighbours.ravel()]))
    pixels = np.concatenate([batch.numpy() for batch in images.batches(wanted)])
    picture = dict(zip(wanted.tolist(), pixels, strict=True))
    names = index.class_names()

    def tile(row: int, query: int | None = None) -> Tile:
        match = None if query is None else bool(index.label[row] == index.label[query])
        return Tile(picture[row], names[int(index.label[row])], match)

    sheet = contact_sheet(
        [tile(query) for query in queries.tolist()],
        [
            [tile(row, query) for row in rows]
            for query, rows in zip(queries.tolist(), neighbours.tolist(), strict=True)
        ],
        title=f"{index.info.name}, {index.split}: queries and their nearest neighbours",
    )
    with atomic_file(path) as file:
        sheet.save(file, format="PNG")
