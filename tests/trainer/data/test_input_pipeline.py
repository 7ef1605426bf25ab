"""Batches hold the plan's rows, whatever the numbers of hosts and replicas and the start."""

import io
import queue
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.fixtures.damaged import flip_byte
from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan, quantized
from trainer.data.input_pipeline import (
    FALLBACKS,
    ROWS_A_CHUNK,
    chunks,
    evaluation_batches,
    iterated,
    train_batches,
)
from trainer.data.reading import FileRecords, MemoryRecords
from tripletmill.formats.index import load_index
from tripletmill.formats.records import decode_example, read_record

PLAIN = Augmentation(min_area=0.3)
ALL = Augmentation(min_area=0.3, brightness=0.3, contrast=0.3, saturation=0.5, hue=0.1, erase=0.5)
KINDS = [FileRecords, MemoryRecords]


@pytest.fixture(scope="module")
def index(data_dir):
    return load_index(str(data_dir), "train")


@pytest.fixture
def copied_index(data_dir, tmp_path):
    """The index of a copy of the data set that a test may damage."""
    return load_index(str(shutil.copytree(data_dir, tmp_path / "data")), "train")


def plan_of(index, classes=4, images=2, **more):
    arguments = {"seed": 3, **more}
    return BatchPlan(index, classes_per_batch=classes, images_per_class=images, **arguments)


def training_data(index, plan, *, kind=FileRecords, first=0, steps=3, size=16, how=ALL, **more):
    options = {"first_step": first, "num_steps": steps, "image_size": size, "augmentation": how}
    return train_batches(index, plan, kind(index), **options, **more)


def evaluation_data(index, rows, *, kind=FileRecords, size=16, share=0.8, batch_size=8, **more):
    options = {"image_size": size, "central_share": share, "batch_size": batch_size}
    return evaluation_batches(index, np.asarray(rows, np.int64), kind(index), **options, **more)


def trained(*arguments, **options):
    """(images, labels, fallbacks) of each element."""
    data = training_data(*arguments, **options)
    return [tuple(part.numpy() for part in batch) for batch in data]


def evaluated(*arguments, **options):
    """(images, places, mask) of each element."""
    data = evaluation_data(*arguments, **options)
    return [tuple(part.numpy() for part in batch) for batch in data]


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)


def joined(elements) -> list[tuple[np.ndarray, ...]]:
    """The elements joined to one element."""
    return [tuple(map(np.concatenate, zip(*elements, strict=True)))]


def record(index, row) -> dict:
    with open(index.shards[index.shard[row]], "rb") as file:
        return decode_example(read_record(file, int(index.offset[row])))


def crop(index, row, window, size, flip=False) -> np.ndarray:
    """A crop made with Pillow, for windows that are enlarged."""
    top, left, height, width = np.asarray(window).tolist()
    assert max(height, width) <= size
    image = Image.open(io.BytesIO(record(index, row)["image/encoded"]))
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)[:, ::-1] if flip else np.asarray(image)


def assert_close(image, expected) -> None:
    """JPEG decoders differ a little."""
    assert np.abs(image.astype(int) - expected).mean() < 2


# ---- Training.


@pytest.mark.parametrize("kind", KINDS)
def test_batches_follow_the_plan(index, kind):
    """Labels and pixels are compared with each row, read by hand."""
    plan = plan_of(index, 5, 3)
    for step, (images, labels, fallbacks) in enumerate(
        trained(index, plan, kind=kind, first=4, size=48, how=PLAIN), start=4
    ):
        rows = plan.batch(step)
        assert [record(index, row)["image/class/label"] for row in rows] == labels.tolist()
        assert (fallbacks == 0).all()
        drawn = PLAIN.draw(plan.seed, step, plan.slots, index.height[rows], index.width[rows], 48)
        for image, row, window, flip in zip(
            images, rows, drawn["window"], drawn["flip"], strict=True
        ):
            assert_close(image, crop(index, row, window, 48, flip))


def test_shapes_and_types(index):
    """Both are known before anything is read."""
    data = training_data(index, plan_of(index, 3, 4), steps=1, size=10, replicas=2)
    assert data.element_spec == (
        tf.TensorSpec([6, 10, 10, 3], tf.uint8),
        tf.TensorSpec([6], tf.int32),
        tf.TensorSpec([6], tf.int32),
    )


@pytest.mark.parametrize("replicas", [2, 12])
def test_replicas_share_a_batch_in_order(index, replicas):
    plan = plan_of(index, 3, 4)
    parts = trained(index, plan, replicas=replicas)
    assert len(parts) == 3 * replicas
    together = [
        joined(parts[start : start + replicas])[0] for start in range(0, len(parts), replicas)
    ]
    assert_equal(together, trained(index, plan))


# The number of images of a host may or may not be divisible by the size of a group.
@pytest.mark.parametrize(
    ("classes", "images", "hosts"),
    [(3, 4, 2), (4, 8, 2), (2, 17, 2), (4, 17, 2), (5, 3, 5)],
)
def test_hosts_share_a_batch(index, classes, images, hosts):
    """Together they read what one host would read, pixel for pixel, with all augmentations."""
    plan = plan_of(index, classes, images)
    parts = [trained(index, plan.for_host(host, hosts), steps=2) for host in range(hosts)]
    together = [joined(each)[0] for each in zip(*parts, strict=True)]
    assert_equal(together, trained(index, plan, steps=2))


def test_hosts_with_replicas(index):
    plan = plan_of(index, 6, 4)
    parts = [trained(index, plan.for_host(host, 2), replicas=2, steps=1) for host in range(2)]
    assert_equal(joined([*parts[0], *parts[1]]), trained(index, plan, steps=1))


@pytest.mark.parametrize("first", [1, 5])
def test_resumed_batches_are_the_same(index, first):
    """They are equal pixel for pixel, with all augmentations."""
    plan = plan_of(index)
    resumed = trained(index, plan_of(index), first=first, steps=3)
    assert_equal(resumed, trained(index, plan, steps=first + 3)[first:])


def test_an_image_is_never_twice_the_same(index):
    """It differs within a batch that repeats it, and from step to step."""
    plan = plan_of(index, 2, 17)
    batches = trained(index, plan, steps=2, how=PLAIN)
    rows = np.concatenate([plan.batch(step) for step in range(2)])
    images = np.concatenate([images for images, _, _ in batches])
    assert np.bincount(rows).max() > 2
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_seeds_crop_differently(index):
    """They do so even if the rows are the same."""
    plan = plan_of(index)
    other = SimpleNamespace(
        batch=plan.batch, slots=plan.slots, seed=plan.seed + 1, images_per_class=2
    )
    [(one, labels, _)], [(another, same, _)] = (
        trained(index, each, steps=1, how=PLAIN) for each in (plan, other)
    )
    np.testing.assert_array_equal(labels, same)
    assert (one != another).any(axis=(1, 2, 3)).all()


def test_files_and_memory_give_the_same(index):
    plan = plan_of(index, 3, 5)
    assert_equal(trained(index, plan, kind=MemoryRecords), trained(index, plan))
    rows = np.arange(len(index))
    assert_equal(evaluated(index, rows, kind=MemoryRecords), evaluated(index, rows))


def test_hard_batches_follow_the_plan(index):
    plan = plan_of(index, 4, 2, hard_share=0.5)
    centres = quantized(np.random.default_rng(0).normal(size=(plan.num_classes, 5)))
    batches = trained(index, plan, steps=6, centres=centres)
    expected = [index.label[plan.batch(step, centres=centres)] for step in range(6)]
    assert [labels.tolist() for _, labels, _ in batches] == [each.tolist() for each in expected]
    without = [index.label[plan.batch(step)] for step in range(6)]
    assert (np.sort(expected) != np.sort(without)).any()


def test_shrunk_crops_are_antialiased(index):
    """Images are shrunk from 32 to 8 pixels and compared with Pillow, which anti-aliases."""
    rows = np.arange(12)
    [(images, _, _)] = evaluated(index, rows, size=8, share=1.0, batch_size=12)
    for image, row in zip(images, rows, strict=True):
        whole = Image.open(io.BytesIO(record(index, row)["image/encoded"]))
        left = (whole.width - 32) // 2
        small = whole.crop((left, 0, left + 32, 32)).resize((8, 8), Image.Resampling.BILINEAR)
        assert_close(image, np.asarray(small))


# ---- Damaged records.


def used(candidates, damaged) -> np.ndarray:
    """The first of the candidates [C, N] that can be read; C if none can be read."""
    lost = np.isin(candidates, [*damaged])
    return np.where(lost.all(axis=0), len(candidates), np.argmin(lost, axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_record_is_replaced_by_its_first_good_fallback(copied_index, kind):
    """Its label stays. Without a good fallback the image is black. Other images do not change."""
    plan = plan_of(copied_index, 4, 4)
    candidates = [plan.batch(step, fallbacks=FALLBACKS) for step in range(3)]
    before = trained(copied_index, plan, kind=kind, size=48, how=PLAIN)
    # One image and both its fallbacks, a second image, and a third image and its first fallback.
    damaged = {*candidates[0][:, 0], candidates[0][0, 5], *candidates[1][:2, 9]}
    for row in damaged:
        flip_byte(copied_index, row)
    expected = [used(each, damaged) for each in candidates]
    assert {*np.concatenate(expected).tolist()} == {0, 1, 2, FALLBACKS + 1}
    after = trained(copied_index, plan, kind=kind, size=48, how=PLAIN)
    for step, (images, labels, fallbacks) in enumerate(after):
        np.testing.assert_array_equal(fallbacks, expected[step])
        np.testing.assert_array_equal(labels, before[step][1])
        np.testing.assert_array_equal(images[fallbacks == 0], before[step][0][fallbacks == 0])
        assert (images[fallbacks == FALLBACKS + 1] == 0).all()
        rows = candidates[step]
        drawn = PLAIN.draw(
            plan.seed, step, plan.slots, copied_index.height[rows], copied_index.width[rows], 48
        )
        for slot in np.flatnonzero((fallbacks > 0) & (fallbacks <= FALLBACKS)):
            candidate = fallbacks[slot], slot
            window, flip = drawn["window"][candidate], drawn["flip"][slot]
            assert_close(images[slot], crop(copied_index, rows[candidate], window, 48, flip))


@pytest.mark.parametrize("how", [Augmentation(contrast=0.9), Augmentation(erase=1.0)])
def test_what_cannot_be_replaced_is_black_whatever_is_drawn(copied_index, how):
    for row in np.flatnonzero(copied_index.label == 0):
        flip_byte(copied_index, row)
    [(images, labels, fallbacks)] = trained(
        copied_index, plan_of(copied_index, 6, 4), steps=1, how=how
    )
    np.testing.assert_array_equal(fallbacks, np.where(labels == 0, FALLBACKS + 1, 0))
    assert (images[labels == 0] == 0).all()


def test_hosts_and_replicas_replace_alike(copied_index):
    plan = plan_of(copied_index, 4, 4)
    for row in plan.batch(0, fallbacks=FALLBACKS)[:, [0, 5]].ravel():
        flip_byte(copied_index, row)
    whole = trained(copied_index, plan)
    assert any(fallbacks.any() for _, _, fallbacks in whole)
    parts = [trained(copied_index, plan.for_host(host, 2), replicas=2) for host in range(2)]
    pairs = [[*parts[0][i : i + 2], *parts[1][i : i + 2]] for i in range(0, 6, 2)]
    assert_equal([joined(pair)[0] for pair in pairs], whole)
    assert_equal(trained(copied_index, plan, kind=MemoryRecords), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 48])
def test_a_damaged_record_is_masked_in_evaluation(copied_index, kind, size):
    """The damaged images are black, and the other images do not change."""
    rows = np.random.default_rng(0).permutation(len(copied_index))
    more = {"kind": kind, "size": size, "batch_size": 10}
    before = joined(evaluated(copied_index, rows, **more))[0]
    damaged = [4, 5, 30]
    for row in damaged:
        flip_byte(copied_index, row)
    images, places, mask = joined(evaluated(copied_index, rows, **more))[0]
    lost = np.isin(rows[np.minimum(places, len(rows) - 1)], damaged)
    assert lost[: len(rows)].sum() == 3
    np.testing.assert_array_equal(places, before[1])
    np.testing.assert_array_equal(mask, before[2] & ~lost)
    np.testing.assert_array_equal(images[~lost], before[0][~lost])
    assert (images[lost] == 0).all()


# ---- Evaluation.


def test_evaluation_shows_the_central_square(index):
    """Rows come in the given order, some twice, and are compared with each row read by hand."""
    rows = [5, 0, 17, 5]
    [(images, places, mask)] = evaluated(index, rows, size=32, share=0.75, batch_size=4)
    assert places.tolist() == [0, 1, 2, 3]
    assert mask.all()
    for image, row in zip(images, rows, strict=True):
        left = (int(index.width[row]) - 24) // 2
        assert_close(image, crop(index, row, (4, left, 24, 24), 32))


@pytest.mark.parametrize("count", [1, 24, 36])
@pytest.mark.parametrize(("hosts", "replicas"), [(1, 3), (2, 1), (2, 2), (3, 2)])
def test_evaluation_reads_every_image_once(index, count, hosts, replicas):
    """All hosts and replicas together read, pixel for pixel, what one replica alone reads."""
    rows = np.random.default_rng(count).permutation(len(index))[:count]
    [alone] = joined(evaluated(index, rows, batch_size=1))
    assert alone[1].tolist() == list(range(count))
    assert alone[2].all()
    more = {"batch_size": 8, "replicas": replicas, "num_hosts": hosts}
    by_host = [evaluated(index, rows, host=host, **more) for host in range(hosts)]
    assert len({len(elements) for elements in by_host}) == 1
    parts = [part for elements in by_host for part in elements]
    assert {part[0].shape for part in parts} == {(-(-8 // (hosts * replicas)), 16, 16, 3)}
    # The order is batch by batch, host by host, replica by replica.
    batches = zip(
        *([e[i : i + replicas] for i in range(0, len(e), replicas)] for e in by_host), strict=True
    )
    images, places, mask = joined([part for batch in batches for each in batch for part in each])[0]
    assert places.tolist() == list(range(len(places)))
    np.testing.assert_array_equal(mask, places < count)
    np.testing.assert_array_equal(images[mask], alone[0])
    # At most one batch is filled up.
    assert len(places) - count < len(parts[0][0]) * hosts * replicas


def test_evaluation_shapes_and_types(index):
    more = {"batch_size": 7, "replicas": 2, "num_hosts": 2}
    data = evaluation_data(index, np.arange(20), size=10, **more)
    assert data.element_spec == (
        tf.TensorSpec([2, 10, 10, 3], tf.uint8),
        tf.TensorSpec([2], tf.int64),
        tf.TensorSpec([2], tf.bool),
    )


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_of_no_images(index, hosts):
    assert evaluated(index, [], num_hosts=hosts) == []


# ---- The data sets.


def operations(data) -> list[tf.compat.v1.NodeDef]:
    """The nodes of a data set's graph and of all functions in it."""
    graph = tf.compat.v1.GraphDef.FromString(data._as_serialized_graph().numpy())
    nodes = [*graph.node]
    for function in graph.library.function:
        nodes += function.node_def
    return nodes


@pytest.mark.parametrize("kind", KINDS)
def test_no_python_in_the_graph(index, kind):
    training = training_data(index, plan_of(index), kind=kind, size=8)
    evaluation = evaluation_data(index, np.arange(9), kind=kind, size=8)
    for data in (training, evaluation):
        found = {node.op for node in operations(data)}
        assert "DecodeAndCropJpeg" in found
        assert not found & {"PyFunc", "PyFuncStateless", "EagerPyFunc", "GeneratorDataset"}


def test_order_is_kept_whatever_takes_longer(index):
    data = evaluation_data(index, np.arange(9), size=8)
    [parallel] = [node for node in operations(data) if node.op == "ParallelMapDatasetV2"]
    assert parallel.attr["deterministic"].s == b"true"


def test_chunks_cover_the_steps():
    assert list(chunks(5, 12, 8)) == [(5, 7)]
    assert list(chunks(0, 5, ROWS_A_CHUNK // 2)) == [(0, 2), (2, 2), (4, 1)]
    assert list(chunks(0, 2, 10**9)) == [(0, 1), (1, 1)]
    assert list(chunks(3, 3, 8)) == []


def test_an_iterator_ends_in_the_background():
    """Destroying it may wait, but it does not hold up the code that used it."""
    ended_in = queue.SimpleQueue()

    class Ones:
        def __iter__(self):
            return self

        def __next__(self):
            return 1

        def __del__(self):
            ended_in.put(threading.current_thread())

    class Batches:
        def __iter__(self):
            return Ones()

    with iterated(Batches()) as batches:
        assert [next(batches()), next(batches())] == [1, 1]
        assert ended_in.empty()
    assert ended_in.get(timeout=60) is not threading.current_thread()
