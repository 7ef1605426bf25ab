"""Batches of pixels from rows of the index: records are read, decoded and augmented in tf.data."""

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
# Other images of the class that may replace an image whose record is damaged.
FALLBACKS = 2
# Images that are read and decoded in one call of TensorFlow and share its overhead. A larger group
# gains nothing.
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
      index: the index of the split.
      plan: which rows each step uses, and which part of them this host reads.
      records: where the records are read from.
      first_step: the first step.
      num_steps: number of steps; the data set ends with the last step.
      image_size: S, side of the square crops in pixels.
      augmentation: draws the crops, as a function of seed, step and slot in the global batch.
      replicas: number of replicas on this host; it divides the host's part of a batch.
      centres: class centres for hard batches, see `BatchPlan.batch`.

    Returns:
      A data set with one element for each step and replica; all replicas of a step come before the
      next step. An element is (images [b, S, S, 3] uint8, labels [b] int32, fallbacks [b] int32).
      A fallback of 0 means the image of the plan. A fallback of n means that its record was damaged
      and its n-th fallback takes its place. FALLBACKS + 1 means that no fallback could be read
      either, and the image is black.
    """
    slots = plan.slots
    classes = slots // plan.images_per_class
    centres = None if centres is None else exact(centres)
    rows, drawn = [], []
    for step in range(first_step, first_step + num_steps):
        rows.append(plan.batch(step, fallbacks=FALLBACKS, centres=centres))
        size = (index.height[rows[-1]], index.width[rows[-1]])
        drawn.append(augmentation.draw(plan.seed, step, slots, *size, image_size, classes))
    per_replica = len(slots) // replicas
    candidates = np.stack(rows, axis=1).reshape(1 + FALLBACKS, -1)
    windows = np.stack([each.pop("window") for each in drawn], axis=1)
    images = _images(
        records,
        candidates,
        windows.reshape(1 + FALLBACKS, -1, 4),
        {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]},
        index.label[candidates[0]],
        image_size=image_size,
        batch_size=per_replica,
    )
    return images.prefetch(2 * replicas)


def chunks(first_step: int, last_step: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Cuts a range of steps into chunks that are small enough for one data set each.

    Yields:
      The first step of a chunk and its number of steps.
    """
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
    """Each image of some rows once, in order, in batches of one size.

    Args:
      index: the index of the split.
      rows: [N] rows of the index.
      records: where the records are read from.
      image_size: S, side of the square images in pixels.
      central_share: side of the central square that is kept, as a share of the image's short side.
      batch_size: number of images in a batch over all hosts and replicas; it is rounded up to a
        multiple of num_hosts * replicas.
      replicas: number of replicas on each host.
      num_hosts: number of hosts that each read a part of the batch.
      host: index of this host, 0 to below num_hosts.

    Returns:
      A data set with one element for each batch and replica of this host; all replicas of a batch
      come before the next batch. An element is (images [b, S, S, 3] uint8, places [b] int64, mask
      [b] bool). A place says which of the N rows the image is. The mask is False for images that
      only fill up the last batch, and for damaged records, which are shown as black images. All
      hosts and replicas have the same number of elements; they have none if N is 0.
    """
    parts = num_hosts * replicas
    per_replica = -(-batch_size // parts)
    batches = -(-len(rows) // (per_replica * parts))
    all_places = np.arange(batches * parts * per_replica).reshape(
        batches, num_hosts, replicas * per_replica
    )
    places = all_places[:, host].ravel()
    mask = places < len(rows)
    host_rows = rows[np.minimum(places, len(rows) - 1)]
    images = _images(
        records,
        host_rows[None],
        central_windows(index.height[host_rows], index.width[host_rows], central_share)[None],
        {},
        {"place": places, "mask": mask},
        image_size=image_size,
        batch_size=per_replica,
    )

    @tf.autograph.experimental.do_not_convert
    def masked(images: tf.Tensor, labels: dict, fallbacks: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return images, labels["place"], labels["mask"] & tf.equal(fallbacks, 0)

    return images.map(masked).prefetch(2 * replicas)


@contextlib.contextmanager
def iterated(
    dataset: tf.data.Dataset | tf.distribute.DistributedDataset,
) -> Iterator[Callable[[], Iterator]]:
    """Yields a function that returns one iterator over a data set, and destroys it at the end.

    The iterator is destroyed in a background thread. When an iterator is destroyed, TensorFlow may
    wait idly until its autotuner wakes up. The longer the iterator has lived, the more rarely that
    happens, down to once a minute. `tf.distribute` adds a stage with an autotuner that no option
    turns off. Only the end of the process has to wait for the thread. It is no daemon thread:
    Python would kill it inside TensorFlow's destructor, which aborts the process.
    """
    iterators = [iter(dataset)]
    try:
        yield lambda: iterators[0]
    finally:
        threading.Thread(target=iterators.clear).start()


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
    """Batches of images with their labels, and which candidate each image was read from.

    Args:
      records: where the records are read from.
      rows: [C, N] candidates for each image; one is read only if those before it are damaged.
      windows: [C, N, 4] the window of each candidate that is decoded.
      drawn: [N, ...] arrays by name: the other arguments of `pixels`.
      labels: [N], or several such arrays by name.
      image_size: S.
      batch_size: b, which divides N.

    Returns:
      A data set of (images [b, S, S, 3] uint8, labels [b], candidates [b] int32). The candidate is
      C if none could be read; the image is then black.
    """
    group = max(size for size in range(1, GROUP + 1) if batch_size % size == 0)
    shrunk = shrinks(windows, image_size)
    if shrunk.any():
        drawn = {**drawn, "shrinks": np.logical_or.reduce(shrunk)}
    arrays = _grouped_arrays(records, rows, windows, drawn, labels, group)

    @tf.autograph.experimental.do_not_convert
    def load(inputs: dict) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        examples, used = _read(records, inputs["places"], len(rows))
        jpegs = tf.io.parse_example(tf.ensure_shape(examples, [group]), _FEATURES)[_ENCODED]
        window = tf.gather(tf.transpose(inputs["windows"], [1, 0, 2]), used, batch_dims=1)
        drawn = {**inputs["drawn"], "window": window}
        images = pixels(jpegs, drawn, image_size)
        if "colour" in drawn or "erased" in drawn:  # both would change the black pixel
            unreadable = tf.equal(used, len(rows))[:, None, None, None]
            images = tf.where(unreadable, tf.zeros([], tf.uint8), images)
        return images, inputs["labels"], used

    @tf.autograph.experimental.do_not_convert
    def flatten(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tf.nest.map_structure(lambda x: tf.reshape(x, [batch_size, *x.shape[2:]]), batch)

    # There is nothing to tune, and autotuning can delay the end of an iterator: see `iterated`.
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_tensor_slices(arrays)
        .map(load, num_parallel_calls=records.parallel_calls, deterministic=True)
        .batch(batch_size // group, drop_remainder=True)
        .map(flatten)
        .with_options(options)
    )


def _grouped_arrays(
    records: Records,
    rows: np.ndarray,
    windows: np.ndarray,
    drawn: Mapping[str, np.ndarray],
    labels: np.ndarray | Mapping[str, np.ndarray],
    group: int,
) -> dict:
    """The inputs of `_images`, cut into groups: [N, ...] -> [N / G, G, ...]."""
    # The last window is that of the black pixel, which stands in if no candidate can be read.
    windows = np.concatenate([windows, np.broadcast_to([0, 0, 1, 1], windows[:1].shape)])

    def grouped(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, group, *array.shape[1:])

    def grouped_candidates(array: np.ndarray) -> np.ndarray:
        """[C, N, ...] -> [N / G, C, G, ...]."""
        return grouped(array.swapaxes(0, 1)).swapaxes(1, 2)

    return {
        "places": {name: grouped_candidates(array) for name, array in records.places(rows).items()},
        "windows": grouped_candidates(windows.astype(np.int32)),
        "drawn": {name: grouped(array) for name, array in drawn.items()},
        "labels": tf.nest.map_structure(grouped, labels),
    }


def _read(
    records: Records, places: Mapping[str, tf.Tensor], count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads one record for each image.

    Args:
      records: where the records are read from.
      places: [C, G] places of the candidates of each image.
      count: C.

    Returns:
      Records, [G], and the candidate that each was read from, [G] int32. If no candidate of an
      image can be read, its record is a black pixel and its candidate is C.
    """

    # This is a call and not a part of the calling graph: TensorFlow spends time on the nodes of a
    # branch in the same graph even if it does not execute the branch.
    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def read_with_fallbacks(places: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        flat = {name: tf.reshape(values, [-1]) for name, values in places.items()}
        candidates = tf.reshape(records.read_each(flat), [count, -1])
        damaged = tf.cast(tf.equal(candidates, NONE), tf.int32)
        used = tf.reduce_sum(tf.math.cumprod(damaged), axis=0)
        black = tf.fill(tf.shape(candidates[:1]), _black_pixel())
        return tf.gather(tf.transpose(tf.concat([candidates, black], 0)), used, batch_dims=1), used

    first = records.read({name: values[0] for name, values in places.items()})
    zeros = tf.zeros(tf.shape(first), tf.int32)
    any_damaged = tf.reduce_any(tf.equal(first, NONE))
    return tf.cond(any_damaged, lambda: read_with_fallbacks(dict(places)), lambda: (first, zeros))


@functools.cache
def _black_pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, format="JPEG")
    return encode_example({_ENCODED: file.getvalue()})
