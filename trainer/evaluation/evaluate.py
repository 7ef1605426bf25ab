"""Retrieval on the classes of a split: the trained model beside what it began with."""

import os
import shlex
from collections.abc import Callable

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
from trainer.evaluation.neighbour_sheet import _write_sheet
from trainer.evaluation.results import TRAINED, Results, split_name, worse
from trainer.retrieval.metrics import RetrievalMetrics
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.folder import EVALUATION_FOLDER, is_data_of
from trainer.runs.write_errors import naming_write_errors
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats.index import load_index, load_info
from tripletmill.formats.splits import GALLERY, QUERY
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
    check_only: bool = False,
) -> None:
    """Evaluates the best checkpoint of a run beside raw pixels and the untrained model.

    Prints a table; writes it to model_dir/evaluation/SPLIT.json (or QUERIES-GALLERY.json), and a
    contact sheet of queries with their nearest neighbours beside it. docs/evaluation.md has what is
    measured.

    Args:
      data_dir: a finished data set.
      model_dir: folder of the run.
      build_model: makes the model; takes embedding_dim=None for the backbone's features alone.
      split: whose images are queries; None: `query`, against `gallery`, where the data set has the
        two, else `test`.
      gallery: the split that is searched; None: the same one, each image but the query itself.
      group: column of the index, such as 'x_camera': images of a query's class and group are left
        out of its ranking. By default the one that the data set names as its group; None for none.
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
    info = load_info(data_dir)
    if split is None:
        both = {QUERY, GALLERY} <= {*info.num_images}
        split, gallery = (QUERY, gallery or GALLERY) if both else ("test", gallery)
    if gallery == split:
        gallery = None
    group = info.group if group == OF_DATA else group
    indexes = [
        load_index(data_dir, each) if check_only else reading.open(data_dir, each)
        for each in (split, gallery)
        if each is not None
    ]
    if not has_queries(*indexes, group=group):
        what = "has two images" if gallery is None else f"is in {gallery} too"
        apart = f", with another {group}" if group else ""
        raise UsageError(f"data_dir {data_dir}: no class of {split} {what}{apart}")
    if check_only:
        return
    if not Checkpoints.exist(model_dir):
        raise UsageError(f"model_dir {model_dir}: no checkpoint to evaluate; train first")
    strategy = make_strategy()
    with naming_lost_workers(strategy):
        require_agreement(strategy, configuration, info)

        def untrained(**changes: None) -> keras.Model:
            keras.utils.set_random_seed(seed)
            with strategy.scope():
                return build_model(**changes)

        model = untrained()
        images = [
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

        def embedded(forward: Forward, what: str) -> list[Embedded]:
            return [Embedded(each, *embed(forward, each, what)) for each in images]

        def measured(forward: Forward, what: str) -> RetrievalMetrics:
            return measure(*embedded(forward, what), group=group, what=what)

        forward = forward_function(strategy, model)
        before = measured(forward, "model before training")
        step = Checkpoints(model_dir, model).restore_best()
        require_same(strategy, step, f"the step of the model in model_dir {model_dir}")
        found = embedded(forward, TRAINED)
        backbone = forward_function(strategy, untrained(embedding_dim=None))
        results = Results(
            queries=indexes[0],
            gallery=indexes[1] if gallery else None,
            group=group,
            step=step,
            num_damaged=sum(len(each.images.index) - len(each.rows) for each in found),
            metrics={
                "raw pixels": measured(compile_on_replicas(strategy, raw_pixels), "raw pixels"),
                "backbone before training": measured(backbone, "backbone before training"),
                "model before training": before,
                TRAINED: measure(*found, group=group, what=TRAINED),
            },
        )
    if not is_chief(strategy):
        return

    folder = os.path.join(model_dir, EVALUATION_FOLDER)
    os.makedirs(folder, exist_ok=True)
    # A run's own data set needs no name; another's figures must not take its place.
    own = is_data_of(model_dir, info)
    name = split_name(split, gallery)
    name = name if own else f"{info.name}-{name}"
    table, sheet = (os.path.join(folder, f"{name}{end}") for end in (".json", "-neighbours.png"))
    with naming_write_errors(table):
        results.write(table)
    _write_sheet(sheet, found, num_queries, num_neighbours, group=group)
    results.show()
    if warning := worse(name, {name: each.map_at_r for name, each in results.metrics.items()}):
        print(warning)
    command = f"python -m trainer.main --mode=evaluate --model_dir={shlex.quote(model_dir)}"
    print(f"next: the same on other images: {command} --data_dir=OTHER")
    print(f"wrote {table}\nwrote {sheet}")
