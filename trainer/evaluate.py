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
from preprocessing.storage import atomic_file, require_local, write_file
from trainer.checkpoints import Checkpoints, is_data_of
from trainer.contact_sheet import Tile, choose_queries, contact_sheet
from trainer.images import Forward, Images, on_replicas
from trainer.reading import Reading, checked
from trainer.retrieval import RetrievalMetrics, nearest_neighbours, retrieval_metrics
from trainer.workers import is_chief, losses_named, require_agreement

FOLDER = "evaluation"
RECALL_AT = (1, 2, 4, 8)
PIXEL_SIDE = 16
TRAINED = "trained model"


def forward_function(strategy: tf.distribute.Strategy, model: keras.Model) -> Forward:
    """A model's forward pass on every replica."""
    return on_replicas(strategy, lambda images: model(images, training=False))


def embed(forward: Forward, images: Images, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [M, D] float32 of images, and their rows [M]; all but the damaged ones.

    Raises:
      UsageError: one is not finite, or a record is damaged.
    """
    embeddings, rows = images.map(forward, what)
    bad = np.count_nonzero(~np.isfinite(embeddings).all(axis=1))
    if bad:
        raise UsageError(
            f"{what}: {bad} of {len(embeddings)} embeddings are not finite, the model has diverged;"
            " lower the learning rate"
        )
    return embeddings, rows


def measure(embeddings: np.ndarray, rows: np.ndarray, images: Images) -> RetrievalMetrics:
    """Of embeddings [M, D] of these rows, each a query against all others."""
    return retrieval_metrics(embeddings, images.index.label[rows], recall_at=RECALL_AT)


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
    reading: Reading | None = None,
    make_strategy: Callable[[], tf.distribute.Strategy] = tf.distribute.get_strategy,
    configuration: str = "",
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
      reading: how records are read.
      make_strategy: makes the distribution strategy.
      configuration: all that several workers must have in common, as text; they compare it.
      check_only: only sees that all that is asked for can be had, before a long training.

    Raises:
      UsageError: no such data set or split, no class of two images in it, or no checkpoint.
      WorkerLostError: another process that evaluates along does not answer.
    """
    require_local(model_dir, "model_dir")
    require_positive(
        "evaluate",
        batch_size=batch_size,
        num_queries=num_queries,
        num_neighbours=num_neighbours,
    )
    check_central_share(central_share)
    reading = checked(reading, "evaluate.reading")
    index = load_index(data_dir, split) if check_only else reading.open(data_dir, split)
    index.class_names()
    if not has_queries(index):
        raise UsageError(f"data_dir {data_dir}: no class of {split} has two images")
    if check_only:
        return
    if not Checkpoints.exist(model_dir):
        raise UsageError(f"model_dir {model_dir}: no checkpoint to evaluate; train first")
    strategy = make_strategy()
    with losses_named(strategy):
        require_agreement(strategy, configuration, index.info)

        def untrained(**changes: None) -> keras.Model:
            keras.utils.set_random_seed(seed)
            with strategy.scope():
                return build_model(**changes)

        model = untrained()
        images = Images(
            index,
            reading.records(index),
            image_size=int(model.input_shape[1]),
            central_share=central_share,
            batch_size=batch_size,
            damaged=reading.damaged,
            strategy=strategy,
        )

        def measured(forward: Forward, what: str) -> RetrievalMetrics:
            return measure(*embed(forward, images, what), images)

        forward = forward_function(strategy, model)
        before = measured(forward, "model before training")
        step = Checkpoints(model_dir, model).restore_best()
        embeddings, rows = embed(forward, images, TRAINED)
        backbone = forward_function(strategy, untrained(embedding_dim=None))
        results = {
            "raw pixels": measured(on_replicas(strategy, raw_pixels), "raw pixels"),
            "backbone before training": measured(backbone, "backbone before training"),
            "model before training": before,
            TRAINED: measure(embeddings, rows, images),
        }
    if not is_chief(strategy):
        return

    folder = os.path.join(model_dir, FOLDER)
    os.makedirs(folder, exist_ok=True)
    # A run's own data set needs no name; another's figures must not take its place.
    own = is_data_of(model_dir, index.info)
    name = split if own else f"{index.info.name}-{split}"
    table, sheet = (os.path.join(folder, f"{name}{end}") for end in (".json", "-neighbours.png"))
    num_damaged = len(index) - len(rows)
    _write_table(table, split, step, num_damaged, results)
    _write_sheet(sheet, embeddings, rows, images, num_queries, num_neighbours)
    _print_table(split, step, num_damaged, results)
    if warning := worse(split, {name: each.map_at_r for name, each in results.items()}):
        print(warning)
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


def worse(split: str, map_at_r: Mapping[str, float]) -> str | None:
    """A warning where the trained model does not come up to what there was without training.

    Fine-tuning can forget: a pretrained backbone's own features may tell unseen classes better.
    """
    name = max(map_at_r, key=lambda name: map_at_r[name])
    if not map_at_r[TRAINED] < map_at_r[name]:
        return None
    return (
        f"warning: training made it worse: MAP@R {map_at_r[TRAINED]:.3f} on {split}, {name}"
        f" {map_at_r[name]:.3f}; try a tenth of the learning rate, train.patience, or no head"
        " (build_model.embedding_dim = None)"
    )


def numbers(metrics: RetrievalMetrics) -> dict[str, float]:
    """Metrics by name, for tables and logs."""
    recall = {f"recall_at_{k}": value for k, value in metrics.recall.items()}
    return {**recall, "map_at_r": metrics.map_at_r, "r_precision": metrics.r_precision}


def _write_table(
    path: str, split: str, step: int, num_damaged: int, results: Mapping[str, RetrievalMetrics]
) -> None:
    any_result = next(iter(results.values()))
    content = {
        "split": split,
        "step": step,
        "num_classes": any_result.num_classes,
        "num_queries": any_result.num_queries,
        "num_without_match": any_result.num_without_match,
        "num_damaged": num_damaged,
        "results": {name: numbers(metrics) for name, metrics in results.items()},
    }
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _print_table(
    split: str, step: int, num_damaged: int, results: Mapping[str, RetrievalMetrics]
) -> None:
    any_result = next(iter(results.values()))
    print(
        f"\n{split}: {any_result.num_queries:,} images of {any_result.num_classes:,} classes, each"
        f" a query against all others; model of step {step:,}"
    )
    if any_result.num_without_match:
        print(f"  {any_result.num_without_match:,} images alone in their class are no queries")
    if num_damaged:
        print(f"  {num_damaged:,} images with damaged records are left out")
    heads = [*(f"Recall@{k}" for k in RECALL_AT), "MAP@R", "R-prec."]
    print(f"  {'':26}" + "".join(f"{head:>10}" for head in heads))
    for name, metrics in results.items():
        values = numbers(metrics).values()
        print(f"  {name:26}" + "".join(f"{value:>10.3f}" for value in values))


def _write_sheet(
    path: str,
    embeddings: np.ndarray,
    rows: np.ndarray,
    images: Images,
    num_queries: int,
    num_neighbours: int,
) -> None:
    index = images.index
    queries = choose_queries(index.label[rows], num=num_queries)
    neighbours = nearest_neighbours(embeddings, num_neighbours, queries=queries).rows
    queries, neighbours = rows[queries], rows[neighbours]
    wanted = np.unique(np.concatenate([queries, neighbours.ravel()]))
    # Of one device: no collective operation of TensorFlow's takes bytes.
    alone = dataclasses.replace(images, strategy=tf.distribute.get_strategy())
    shown, wanted = alone.map(on_replicas(alone.strategy, tf.identity), "pictures", wanted)
    picture = dict(zip(wanted.tolist(), shown, strict=True))
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
