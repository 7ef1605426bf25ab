"""Retrieval on the classes of a split: the trained model beside what it began with."""

import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from preprocessing.splits import GALLERY, QUERY
from trainer.data.reading import Reading, checked
from trainer.distributed.agreement import is_chief, losses_named, require_agreement, require_same
from trainer.evaluation.inference import Forward, Images, on_replicas
from trainer.evaluation.results import RECALL_AT, TRAINED, Results, split_name, worse
from trainer.pictures.contact_sheet import Tile, choose_queries, contact_sheet
from trainer.retrieval import Gallery, RetrievalMetrics, nearest_neighbours, retrieval_metrics
from trainer.retrieval.matches import Protocol
from trainer.runs.checkpoints import Checkpoints, is_data_of
from trainer.runs.write_errors import written
from tripletmill.errors import UsageError, require_positive
from tripletmill.formats.index import DatasetIndex, load_index, load_info
from tripletmill.storage import atomic_file, require_local

FOLDER = "evaluation"
PIXEL_SIDE = 16
OF_DATA = "of the data set"


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


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Images with what a model makes of them.

    Attributes:
      images: of a split.
      embeddings: [M, D] float32.
      rows: [M], which images; all but the damaged ones.
    """

    images: Images
    embeddings: np.ndarray
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """[M]."""
        return self.images.index.label[self.rows]

    def groups(self, column: str | None) -> list[str | None] | None:
        """[M] of a column of the index; None without one."""
        if column is None:
            return None
        values = self.images.index.column(column).to_pylist()
        return [values[row] for row in self.rows.tolist()]


def measure(
    queries: Embedded, gallery: Embedded | None = None, *, group: str | None, what: str
) -> RetrievalMetrics:
    """Retrieval on the replicas of the images' strategy; all workers have to ask.

    Args:
      queries: each a query.
      gallery: what is searched; None: the queries, each but the query itself.
      group: column; rows of a query's class and group are left out of its ranking.
      what: the embeddings are, for the progress line.
    """
    searched = None
    if gallery is not None:
        searched = Gallery(gallery.embeddings, gallery.labels, gallery.groups(group))
    return retrieval_metrics(
        queries.embeddings,
        queries.labels,
        groups=queries.groups(group),
        gallery=searched,
        recall_at=RECALL_AT,
        strategy=queries.images.strategy,
        what=what,
    )


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
    with losses_named(strategy):
        require_agreement(strategy, configuration, info)

        def untrained(**changes: None) -> keras.Model:
            keras.utils.set_random_seed(seed)
            with strategy.scope():
                return build_model(**changes)

        model = untrained()
        images = [
            Images(
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
                "raw pixels": measured(on_replicas(strategy, raw_pixels), "raw pixels"),
                "backbone before training": measured(backbone, "backbone before training"),
                "model before training": before,
                TRAINED: measure(*found, group=group, what=TRAINED),
            },
        )
    if not is_chief(strategy):
        return

    folder = os.path.join(model_dir, FOLDER)
    os.makedirs(folder, exist_ok=True)
    # A run's own data set needs no name; another's figures must not take its place.
    own = is_data_of(model_dir, info)
    name = split_name(split, gallery)
    name = name if own else f"{info.name}-{name}"
    table, sheet = (os.path.join(folder, f"{name}{end}") for end in (".json", "-neighbours.png"))
    with written(table):
        results.write(table)
    _write_sheet(sheet, found, num_queries, num_neighbours, group=group)
    results.show()
    if warning := worse(name, {name: each.map_at_r for name, each in results.metrics.items()}):
        print(warning)
    command = f"python -m trainer.main --mode=evaluate --model_dir={shlex.quote(model_dir)}"
    print(f"next: the same on other images: {command} --data_dir=OTHER")
    print(f"wrote {table}\nwrote {sheet}")


def has_queries(
    queries: DatasetIndex, gallery: DatasetIndex | None = None, *, group: str | None
) -> bool:
    """Whether an image of the split has a match, so that it can be found by it."""

    def of(index: DatasetIndex) -> tuple[np.ndarray, list[str | None] | None]:
        return index.label, None if group is None else index.column(group).to_pylist()

    searched = None if gallery is None else of(gallery)
    return bool(Protocol(*of(queries), searched).num_matches.any())


def check_central_share(value: float) -> None:
    """Raises UsageError unless above 0 and at most 1."""
    if not 0 < value <= 1:
        raise UsageError(f"central_share {value}: above 0, at most 1")


def raw_pixels(images: tf.Tensor) -> tf.Tensor:
    """Images [batch, S, S, 3] -> [batch, 768]: shrunk to 16 x 16 by area, compared as they are."""
    # TPUs have no kernel of TensorFlow's for it.
    side = images.shape[1]
    ends = np.arange(side + 1) * PIXEL_SIDE / side
    cells = np.arange(PIXEL_SIDE)[:, None]
    share = np.diff(np.clip(ends, cells, cells + 1))
    shares = tf.constant(share, tf.float32)
    small = tf.einsum("is,bstc,jt->bijc", shares, tf.cast(images, tf.float32), shares)
    return tf.reshape(small, [-1, PIXEL_SIDE * PIXEL_SIDE * 3])


def _write_sheet(
    path: str,
    found: Sequence[Embedded],
    num_queries: int,
    num_neighbours: int,
    *,
    group: str | None,
) -> None:
    """Of queries and, where that is another split, the gallery."""
    of, among = found[0], found[-1]
    places = choose_queries(of.labels, num=num_queries)
    queries = of.rows[places]
    neighbours = [
        among.rows[nearest] for nearest in _nearest(of, among, places, num_neighbours, group)
    ]
    if among is of:
        shown = pictures = _pictures(of.images, np.concatenate([queries, *neighbours]))
    else:
        shown = _pictures(of.images, queries)
        pictures = _pictures(among.images, np.concatenate(neighbours))
    index, searched = of.images.index, among.images.index
    title = index.split if among is of else f"{index.split} in {searched.split}"
    names = index.class_names()

    def neighbour(row: int, query: int) -> Tile:
        label = int(searched.label[row])
        return Tile(pictures[row], names[label], bool(label == index.label[query]))

    sheet = contact_sheet(
        [Tile(shown[query], names[int(index.label[query])]) for query in queries.tolist()],
        [
            [neighbour(row, query) for row in rows.tolist()]
            for query, rows in zip(queries.tolist(), neighbours, strict=True)
        ],
        title=f"{index.info.name}, {title}: queries and their nearest neighbours",
    )
    with written(path), atomic_file(path) as file:
        sheet.save(file, format="PNG")


def _nearest(
    of: Embedded, among: Embedded, queries: np.ndarray, num: int, group: str | None
) -> list[np.ndarray]:
    """Places of each query's nearest that count: not those of its class and its group."""
    same = among is of
    rows = nearest_neighbours(
        of.embeddings,
        num,
        queries=queries,
        gallery=None if same else among.embeddings,
        protocol=Protocol(
            of.labels, of.groups(group), None if same else (among.labels, among.groups(group))
        ),
    ).rows
    return [places[places >= 0] for places in rows]


def _pictures(images: Images, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Images [S, S, 3] uint8 by row."""
    # Of one device: no collective operation of TensorFlow's takes bytes.
    alone = dataclasses.replace(images, strategy=tf.distribute.get_strategy())
    identity = on_replicas(alone.strategy, tf.identity)
    shown, rows = alone.map(identity, "pictures", np.unique(rows))
    return dict(zip(rows.tolist(), shown, strict=True))
