"""Rows of the index to pixels: records read, decoded, augmented, as a tf.data graph."""

import contextlib
import functools
import io
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan, exact
from trainer.data.image_ops import central_windows, pixels, shrinks
from trainer.data.reading import NONE, Records
from tripletmill.formats.index import DatasetIndex
from tripletmill.formats.records import encode_example

ROWS_A_CHUNK = 200_000
SPARES = 2
# Images that share the cost of one call of TensorFlow; more than this gains nothing.
GROUP = 8

_ENCODED = "image/encoded"
_FEATURES = {_ENCODED: tf.io.FixedLenFeature([], tf.string)}


def train_batches(
    index: DatasetIndex,
    plan: BatchPlan,
    records: Records,
    *,
    first_step: int,
    num_steps: int,
    image_size: int,
    augmentation: Augmentation,
    replicas: int = 1,
    centres: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Training batches of some steps, as this host reads them.

    Args:
      index: the split's records.
      plan: which rows each step sees, and which host this is.
      records: where the records are read.
      first_step: the first step.
      num_steps: how many steps; the data set ends with the last one.
      image_size: S, side of the square crops, pixels.
      augmentation: how crops are drawn; a function of (seed, step, slot in the global batch).
      replicas: how many replicas of this host share its part of a batch; divides it.
      centres: for hard batches, see `BatchPlan.batch`.

    Returns:
      A data set with an element for each step and replica, replicas first, of (images [b, S, S, 3]
      uint8, labels [b] int32, spares [b] int32): 0 for an image of the plan, n where it was damaged
      and its n-th spare stands in its place, SPARES + 1 where those were too and it is black.
    """
    slots = plan.slots
    classes = slots // plan.images_per_class
    centres = None if centres is None else exact(centres)
    rows, drawn = [], []
    for step in range(first_step, first_step + num_steps):
        rows.append(plan.batch(step, spares=SPARES, centres=centres))
        size = (index.height[rows[-1]], index.width[rows[-1]])
        drawn.append(augmentation.draw(plan.seed, step, slots, *size, image_size, classes))
    per_replica = len(slots) // replicas
    candidates = np.stack(rows, axis=1).reshape(1 + SPARES, -1)
    windows = np.stack([each.pop("window") for each in drawn], axis=1)
    images = _images(
        records,
        candidates,
        windows.reshape(1 + SPARES, -1, 4),
        {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]},
        index.label[candidates[0]],
        image_size=image_size,
        batch_size=per_replica,
    )
    return images.prefetch(2 * replicas)


def chunks(first_step: int, last_step: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Cuts steps into (first step, number of steps) small enough for one data set each."""
    size = max(1, ROWS_A_CHUNK // batch_size)
    for start in range(first_step, last_step, size):
        yield start, min(size, last_step - start)


def evaluation_batches(
    index: DatasetIndex,
    rows: np.ndarray,
    records: Records,
    *,
    image_size: int,
    central_share: float,
    batch_size: int,
    replicas: int = 1,
    num_hosts: int = 1,
    host: int = 0,
) -> tf.data.Dataset:
    """Every image of these rows once, in order, in batches of one size.

    Args:
      index: the split's records.
      rows: [N] rows of the index.
      records: where the records are read.
      image_size: S, side of the square images, pixels.
      central_share: side of the central square that is kept, as a share of the short side.
      batch_size: images a batch over all hosts and replicas; rounded up to a multiple of these.
      replicas: replicas on each host.
      num_hosts: hosts that read a part of each batch.
      host: which of them this is.

    Returns:
      A data set with an element for each batch and replica of this host, replicas first, of
      (images [b, S, S, 3] uint8, places [b] int64, mask [b] bool): which of the N an image is;
      the mask is False for what fills up the last batch, and for a damaged record, which is black.
      Every host and replica has the same number of elements; none where N is 0.
    """
    parts = num_hosts * replicas
    per_replica = -(-batch_size // parts)
    batches = -(-len(rows) // (per_replica * parts))
    all_places = np.arange(batches * parts * per_replica).reshape(
        batches, num_hosts, replicas * per_replica
    )
    places = all_places[:, host].ravel()
    mask = places < len(rows)
    here = rows[np.minimum(places, len(rows) - 1)]
    images = _images(
        records,
        here[None],
        central_windows(index.height[here], index.width[here], central_share)[None],
        {},
        {"place": places, "mask": mask},
        image_size=image_size,
        batch_size=per_replica,
    )

    @tf.autograph.experimental.do_not_convert
    def masked(images: tf.Tensor, of: dict, spares: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return images, of["place"], of["mask"] & tf.equal(spares, 0)

    return images.map(masked).prefetch(2 * replicas)


@contextlib.contextmanager
def iterated(
    dataset: tf.data.Dataset | tf.distribute.DistributedDataset,
) -> Iterator[Callable[[], Iterator]]:
    """Gives a function that returns an iterator, the same at each call, and ends it at the end.

    In the background: TensorFlow may wait, with nothing to do, until its tuner looks again, and the
    longer an iterator has lived the rarer that is, up to once a minute. `tf.distribute` adds a
    stage with a tuner of its own that no option turns off. Only the end of the process has to wait
    for it: Python would kill a daemon inside TensorFlow's destructor, which aborts.
    """
    held = [iter(dataset)]
    try:
        yield lambda: held[0]
    finally:
        threading.Thread(target=held.clear).start()


def _images(
    records: Records,
    rows: np.ndarray,
    windows: np.ndarray,
    drawn: Mapping[str, np.ndarray],
    labels: np.ndarray | Mapping[str, np.ndarray],
    *,
    image_size: int,
    batch_size: int,
) -> tf.data.Dataset:
    """Images with their labels, and which of the candidates each was read from.

    Args:
      records: where the records are read.
      rows: [C, N] candidates for each image; one is read only if those before it are damaged.
      windows: [C, N, 4] what is decoded of each.
      drawn: [N, ...] what else `pixels` takes.
      labels: [N], or several by name.
      image_size: S.
      batch_size: divides N.

    Returns:
      A data set of ([batch_size, S, S, 3] uint8, labels [batch_size], [batch_size] int32).
    """
    group = max(size for size in range(1, GROUP + 1) if batch_size % size == 0)
    shrunk = shrinks(windows, image_size)
    if shrunk.any():
        drawn = {**drawn, "shrinks": np.logical_or.reduce(shrunk)}
    # The window of the black pixel that stands where no candidate can be read.
    windows = np.concatenate([windows, np.broadcast_to([0, 0, 1, 1], windows[:1].shape)])

    def grouped(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, group, *array.shape[1:])

    def candidates(array: np.ndarray) -> np.ndarray:
        return grouped(array.swapaxes(0, 1)).swapaxes(1, 2)

    arrays = {
        "places": {name: candidates(array) for name, array in records.places(rows).items()},
        "windows": candidates(windows.astype(np.int32)),
        "drawn": {name: grouped(array) for name, array in drawn.items()},
        "labels": tf.nest.map_structure(grouped, labels),
    }

    @tf.autograph.experimental.do_not_convert
    def load(of: dict) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        found, used = _read(records, of["places"], len(rows))
        jpegs = tf.io.parse_example(tf.ensure_shape(found, [group]), _FEATURES)[_ENCODED]
        window = tf.gather(tf.transpose(of["windows"], [1, 0, 2]), used, batch_dims=1)
        drawn = {**of["drawn"], "window": window}
        images = pixels(jpegs, drawn, image_size)
        if "colour" in drawn or "erased" in drawn:  # which would show on the black pixel
            lost = tf.equal(used, len(rows))[:, None, None, None]
            images = tf.where(lost, tf.zeros([], tf.uint8), images)
        return images, of["labels"], used

    @tf.autograph.experimental.do_not_convert
    def flatten(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tf.nest.map_structure(lambda x: tf.reshape(x, [batch_size, *x.shape[2:]]), batch)

    # There is nothing to tune, see `iterated` for what it would cost.
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_tensor_slices(arrays)
        .map(load, num_parallel_calls=records.parallel_calls, deterministic=True)
        .batch(batch_size // group, drop_remainder=True)
        .map(flatten)
        .with_options(options)
    )


def _read(
    records: Records, places: Mapping[str, tf.Tensor], count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Records [G] of candidates [C, G], and which each is: C, a black pixel, where none is left."""

    # A call, not a part of this graph: what is not executed of that takes time as well.
    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def with_spares(places: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        flat = {name: tf.reshape(values, [-1]) for name, values in places.items()}
        lines = tf.reshape(records.read_each(flat), [count, -1])
        used = tf.reduce_sum(tf.math.cumprod(tf.cast(tf.equal(lines, NONE), tf.int32)), axis=0)
        black = tf.fill(tf.shape(lines[:1]), _black_pixel())
        return tf.gather(tf.transpose(tf.concat([lines, black], 0)), used, batch_dims=1), used

    found = records.read({name: values[0] for name, values in places.items()})
    first = tf.zeros(tf.shape(found), tf.int32)
    any_damaged = tf.reduce_any(tf.equal(found, NONE))
    return tf.cond(any_damaged, lambda: with_spares(dict(places)), lambda: (found, first))


@functools.cache
def _black_pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, format="JPEG")
    return encode_example({_ENCODED: file.getvalue()})
