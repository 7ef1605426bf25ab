"""Evaluates a run by retrieval on a split: the trained model beside three baselines."""

import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.data.image_ops import check_central_share
from trainer.data.reading import Reading, checked
from trainer.distributed.agreement import is_chief, require_agreement, require_same
from trainer.distributed.lost_workers import naming_lost_workers
from trainer.evaluation.inference import (
    Forward,
    SplitImages,
    compile_on_replicas,
    embed,
    forward_function,
)
from trainer.evaluation.measure import Embedded, has_queries, measure, raw_pixels
from trainer.evaluation.neighbour_sheet import write_sheet
from trainer.evaluation.results import TRAINED, Results, results_name, results_path, worse
from trainer.retrieval.metrics import RetrievalMetrics
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.write_errors import naming_write_errors
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats.index import DatasetIndex, load_index, load_info
from tripletmill.formats.splits import default_splits
from tripletmill.storage.storage import require_local

OF_DATA = "of the data set"


def evaluate(
    *,
    data_dir: str,
    model_dir: str,
    build_model: Callable[..., keras.Model],
    split: str | None = None,
    gallery: str | None = None,
    group: str | None = OF_DATA,
    central_share: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    num_queries: int = 12,
    num_neighbours: int = 8,
    reading: Reading | None = None,
    make_strategy: Callable[[], tf.distribute.Strategy] = tf.distribute.get_strategy,
    configuration: str = "",
) -> None:
    """Evaluates the best checkpoint of a run, beside raw pixels and the untrained model.

    Prints a table, and writes it to model_dir/evaluation/SPLIT.json or QUERIES-GALLERY.json, beside
    a contact sheet of queries with their nearest neighbours. docs/evaluation.md says what is
    measured.

    Args:
      data_dir: a finished data set.
      model_dir: folder of the run.
      build_model: makes the model; called with embedding_dim=None for the backbone alone.
      split: the split whose images are queries. None: `query`, searched for in `gallery`, if the
        data set has both, otherwise `test`.
      gallery: the split that is searched. None: the queries' split, where each query is left out of
        its own ranking.
      group: column of the index, such as 'x_camera', or None. Images that have a query's class and
        its group are left out of its ranking. By default the data set's own group column.
      central_share: side of the image's central square that is used, as a share of its short side.
      batch_size: images at a time, over all replicas.
      seed: seed of the training, so that the untrained model is the one that training began with.
      num_queries: rows of the contact sheet.
      num_neighbours: neighbours in each row of the contact sheet.
      reading: how records are read.
      make_strategy: makes the distribution strategy.
      configuration: the configuration as text; several workers check that theirs are equal.

    Raises:
      UsageError: an argument is out of range, the data set, a split or a checkpoint is missing, or
        no image of the split has a match.
      WorkerLostError: another worker does not answer.
    """
    reading = checked(reading, "evaluate.reading")
    indexes, group = check_evaluation(
        data_dir=data_dir,
        model_dir=model_dir,
        split=split,
        gallery=gallery,
        group=group,
        central_share=central_share,
        batch_size=batch_size,
        num_queries=num_queries,
        num_neighbours=num_neighbours,
    )
    indexes = [reading.bring(index) for index in indexes]
    if not Checkpoints.exist(model_dir):
        raise UsageError(f"model_dir {model_dir}: no checkpoint to evaluate; train first")
    strategy = make_strategy()

    def untrained(**changes: None) -> keras.Model:
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            return build_model(**changes)

    with naming_lost_workers(strategy):
        require_agreement(strategy, configuration, indexes[0].info)
        model = untrained()
        images = _split_images(indexes, reading, strategy, model, central_share, batch_size)
        backbone = untrained(embedding_dim=None)
        results, trained = _measure_models(images, group, model_dir, model, backbone)
    if is_chief(strategy):
        _write(model_dir, results, trained, num_queries, num_neighbours)


def check_evaluation(
    *,
    data_dir: str,
    model_dir: str,
    split: str | None = None,
    gallery: str | None = None,
    group: str | None = OF_DATA,
    central_share: float = 1.0,
    batch_size: int = 128,
    num_queries: int = 12,
    num_neighbours: int = 8,
    reading: Reading | None = None,
    **_: Any,
) -> tuple[list[DatasetIndex], str | None]:
    """Checks before a long training that `evaluate` will have what it needs from a data set.

    Reads the indexes of the splits, but no images and no checkpoint.

    The arguments are explained at `evaluate`. Further arguments of `evaluate` are accepted and not
    checked, so that both functions can be called with the same arguments.

    Returns:
      The index of the queries' split and, if it is another one, of the gallery; the column of the
      groups.

    Raises:
      UsageError: an argument is out of range, the data set or a split is missing, or no image of
        the split has a match.
    """
    require_local(model_dir, "model_dir")
    require_positive(
        "evaluate", batch_size=batch_size, num_queries=num_queries, num_neighbours=num_neighbours
    )
    check_central_share(central_share)
    checked(reading, "evaluate.reading")
    info = load_info(data_dir)
    if split is None:
        split, default_gallery = default_splits(info.num_images)
        gallery = gallery or default_gallery
    group = info.group if group == OF_DATA else group
    splits = [split] if gallery is None or gallery == split else [split, gallery]
    indexes = [load_index(data_dir, name) for name in splits]
    if not has_queries(*indexes, group=group):
        lacking = "has two images" if len(indexes) == 1 else f"is in {gallery} too"
        apart = f", with another {group}" if group else ""
        raise UsageError(f"data_dir {data_dir}: no class of {split} {lacking}{apart}")
    return indexes, group


def _split_images(
    indexes: Sequence[DatasetIndex],
    reading: Reading,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    central_share: float,
    batch_size: int,
) -> list[SplitImages]:
    """Returns the images of each split, at the size that the model takes."""
    return [
        SplitImages(
            index,
            reading.records(index),
            image_size=int(model.input_shape[1]),
            central_share=central_share,
            batch_size=batch_size,
            damaged=reading.damaged,
            strategy=strategy,
        )
        for index in indexes
    ]


def _measure_models(
    images: Sequence[SplitImages],
    group: str | None,
    model_dir: str,
    model: keras.Model,
    backbone: keras.Model,
) -> tuple[Results, list[Embedded]]:
    """Measures the model before and after training, its backbone alone, and raw pixels.

    Args:
      images: of the queries' split and, if it is another one, of the gallery's.
      group: column of the index.
      model_dir: folder of the run, whose best checkpoint is restored.
      model: the untrained model; afterwards it has the trained weights.
      backbone: the untrained backbone alone.

    Returns:
      The results, and the trained model's embeddings of `images`.
    """
    strategy = images[0].strategy
    metrics: dict[str, RetrievalMetrics] = {}

    def measured(name: str, forward: Forward) -> list[Embedded]:
        embedded = [Embedded(split, *embed(forward, split, name)) for split in images]
        metrics[name] = measure(*embedded, group=group, progress_name=name)
        return embedded

    forward = forward_function(strategy, model)
    measured("raw pixels", compile_on_replicas(strategy, raw_pixels))
    measured("backbone before training", forward_function(strategy, backbone))
    measured("model before training", forward)
    step = Checkpoints(model_dir, model).restore_best()
    require_same(strategy, step, f"the step of the model in model_dir {model_dir}")
    trained = measured(TRAINED, forward)
    results = Results(
        queries=images[0].index,
        gallery=images[1].index if len(images) > 1 else None,
        group=group,
        step=step,
        num_damaged=sum(len(split.images.index) - len(split.rows) for split in trained),
        metrics=metrics,
    )
    return results, trained


def _write(
    model_dir: str,
    results: Results,
    trained: Sequence[Embedded],
    num_queries: int,
    num_neighbours: int,
) -> None:
    """Writes and prints the results, and writes the contact sheet."""
    name = results_name(model_dir, results.queries.info, *results.splits)
    table = results_path(model_dir, name)
    sheet = f"{table.removesuffix('.json')}-neighbours.png"
    os.makedirs(os.path.dirname(table), exist_ok=True)
    with naming_write_errors(table):
        results.write(table)
    write_sheet(sheet, trained[0], trained[-1], num_queries, num_neighbours, group=results.group)
    results.show()
    if warning := worse(name, {model: each.map_at_r for model, each in results.metrics.items()}):
        print(warning)
    command = f"python -m trainer.main --mode=evaluate --model_dir={shlex.quote(model_dir)}"
    print(f"next: the same on other images: {command} --data_dir=OTHER")
    print(f"wrote {table}\nwrote {sheet}")
