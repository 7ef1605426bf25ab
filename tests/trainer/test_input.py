"""Pixels: the right record for every row, crops that are a function of their place."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from preprocessing.errors import UsageError
from preprocessing.index import load_index
from preprocessing.records import decode_example, read_record
from tests.fixtures.datasets import make_data_set
from trainer.batching import BatchPlan
from trainer.input import Augmentation, chunks, evaluation_batches, train_batches

WHOLE = Augmentation(min_area=1.0, max_aspect=1.0, flip=False)


@pytest.fixture(scope="module")
def index(data_dir):
    return load_index(str(data_dir), "train")


@pytest.fixture(scope="module")
def plan(index):
    return BatchPlan(index.label, classes_per_batch=4, images_per_class=2, seed=3)


def batches(index, plan, *, first_step=0, num_steps=3, augmentation=None, replicas=1, size=16):
    data = train_batches(
        index,
        plan,
        first_step=first_step,
        num_steps=num_steps,
        image_size=size,
        augmentation=augmentation or Augmentation(),
        replicas=replicas,
    )
    return [(images.numpy(), labels.numpy()) for images, labels in data]


def record(index, row) -> dict:
    with open(index.shards[index.shard[row]], "rb") as file:
        return decode_example(read_record(file, int(index.offset[row])))


def decoded(index, row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record(index, row)["image/encoded"])))


def test_rows_become_their_images(index):
    rows = np.array([5, 0, 17, 5])
    [images] = evaluation_batches(index, rows, image_size=32, central_share=1.0, batch_size=8)
    for image, row in zip(images.numpy(), rows, strict=True):
        whole = decoded(index, row).astype(int)
        left = (whole.shape[1] - 32) / 2
        centre = whole[:, round(left) : round(left) + 32]
        # JPEG decoders may differ by a little.
        assert np.abs(image.astype(int) - centre).mean() < 1.5


def test_evaluation_keeps_order_and_the_last_small_batch(index):
    data = evaluation_batches(
        index, np.arange(len(index)), image_size=8, central_share=0.5, batch_size=7
    )
    sizes = [len(batch) for batch in data]
    assert sum(sizes) == len(index)
    assert sizes[:-1] == [7] * (len(sizes) - 1)


def test_batches_follow_the_plan(index, plan):
    for step, (images, labels) in enumerate(batches(index, plan)):
        rows = plan.batch(step).ravel()
        np.testing.assert_array_equal(labels, index.label[rows])
        assert [record(index, row)["image/class/label"] for row in rows] == labels.tolist()
        assert images.shape == (8, 16, 16, 3)
        assert images.dtype == np.uint8


def test_whole_crop_is_the_image(index, plan):
    [(images, _)] = batches(index, plan, num_steps=1, augmentation=WHOLE, size=32)
    for image, row in zip(images, plan.batch(0).ravel(), strict=True):
        whole = decoded(index, row)
        if whole.shape == (32, 32, 3):
            assert np.abs(image.astype(int) - whole).mean() < 1.5


def test_crops_are_a_function_of_seed_and_step(index, plan):
    whole = batches(index, plan, num_steps=4)
    resumed = batches(index, plan, first_step=2, num_steps=2)
    for (images, _), (again, _) in zip(whole[2:], resumed, strict=True):
        np.testing.assert_array_equal(images, again)
    other = BatchPlan(index.label, classes_per_batch=4, images_per_class=2, seed=4)
    assert (batches(index, other, num_steps=1)[0][0] != whole[0][0]).any()


def test_crops_of_the_same_rows_differ_by_seed(index, plan):
    other = SimpleNamespace(batch=plan.batch, batch_size=plan.batch_size, seed=plan.seed + 1)
    [(one, labels)], [(another, same)] = (batches(index, p, num_steps=1) for p in (plan, other))
    np.testing.assert_array_equal(labels, same)
    assert (one != another).any(axis=(1, 2, 3)).all()


def test_shrinking_does_not_alias(tmp_path):
    """Stripes too fine for the smaller image become grey."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(stripes).save(tmp_path / f"images/{name}/{i}.png")
    index = load_index(str(make_data_set(tmp_path, short_side=64)), "train")
    [image] = evaluation_batches(
        index, np.array([0]), image_size=12, central_share=1.0, batch_size=1
    )
    assert np.abs(image.numpy().astype(int) - 127).max() < 40
    assert image.numpy().std() < 10


def test_replicas_share_a_batch_in_order(index, plan):
    whole = batches(index, plan)
    parts = batches(index, plan, replicas=2)
    for step, (images, labels) in enumerate(whole):
        pair = parts[2 * step : 2 * step + 2]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in pair]), images)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in pair]), labels)


def test_flips(index, plan):
    """Of the same crops, about half are mirrored when flips are on, the rest are the same."""
    still = Augmentation(min_area=0.5, flip=False)
    moving = Augmentation(min_area=0.5, flip=True)
    mirrored = 0
    pairs = zip(
        batches(index, plan, num_steps=10, augmentation=still),
        batches(index, plan, num_steps=10, augmentation=moving),
        strict=True,
    )
    for (plain, _), (flipped, _) in pairs:
        for one, other in zip(plain, flipped, strict=True):
            if (one == other).all():
                continue
            np.testing.assert_array_equal(one[:, ::-1], other)
            mirrored += 1
    assert 20 <= mirrored <= 60


def test_damaged_record_is_an_error(data_dir, index, tmp_path):
    import shutil

    copy = shutil.copytree(data_dir, tmp_path / "data")
    damaged = load_index(str(copy), "train")
    with open(damaged.shards[0], "r+b") as file:
        file.seek(int(damaged.offset[1]) + 40)
        file.write(b"\xff\x00\xff")
    data = evaluation_batches(damaged, np.array([1]), image_size=8, central_share=1.0, batch_size=1)
    with pytest.raises(tf.errors.DataLossError):
        list(data)


def test_chunks_cover_the_steps():
    assert list(chunks(5, 12, 8)) == [(5, 7)]
    assert list(chunks(0, 5, 250_000)) == [(0, 2), (2, 2), (4, 1)]
    assert list(chunks(0, 2, 10**9)) == [(0, 1), (1, 1)]
    assert list(chunks(3, 3, 8)) == []


@pytest.mark.parametrize(
    "values", [{"min_area": 0}, {"min_area": 0.9, "max_area": 0.5}, {"max_aspect": 0.5}]
)
def test_wrong_augmentation(values):
    with pytest.raises(UsageError, match="Augmentation"):
        Augmentation(**values)
