"""Reads again what is written for TensorBoard: distances, pictures and points."""

import io
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.data.reading import FileRecords
from trainer.evaluation.inference import SplitImages, images_as_evaluated
from trainer.training import tensorboard
from trainer.training.tensorboard import TensorBoard, mined, sprite, without_repeats
from trainer.training.train_step import LastBatch
from tripletmill.formats.index import load_index

SIDE = 16
NONE = -float("inf")


@pytest.fixture(scope="module")
def images(data_dir) -> SplitImages:
    index = load_index(str(data_dir), "train")
    return SplitImages(index, FileRecords(index), image_size=SIDE, central_share=1.0, batch_size=8)


@pytest.fixture
def board(tmp_path):
    board = TensorBoard(str(tmp_path))
    yield board
    board.close()


def last_batch() -> LastBatch:
    """Six points on a line at 0, 1, 3, 6, 10 and 15. Anchors 1 and 4 have no triplet here."""
    return LastBatch(
        embeddings=np.array([[0.0], [1], [3], [6], [10], [15]], np.float32),
        positive=np.array([1, 0, 3, 2, 0, 4]),
        negative=np.array([2, 0, 4, 5, 9, 3]),
        term=np.array([0.1, NONE, 0.5, 0.3, 0.2, 0.4], np.float32),
    )


def events(folder) -> dict[str, tf.compat.v1.Event]:
    """Returns the step and the value of the last event of each tag."""
    [file] = folder.glob("events*")
    values = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        values.update({value.tag: (event.step, value.tensor) for value in event.summary.value})
    return {tag: (step, tf.make_ndarray(tensor)) for tag, (step, tensor) in values.items()}


def test_costliest_triplets_first():
    triplets = mined(last_batch())
    # Anchor 4's negative is a row of another host.
    assert triplets.anchor.tolist() == [2, 5, 3, 0]
    assert triplets.positive.tolist() == [3, 4, 2, 1]
    assert triplets.negative.tolist() == [4, 3, 5, 2]
    assert triplets.to_positive.tolist() == [3, 5, 3, 1]
    assert triplets.to_negative.tolist() == [7, 9, 9, 3]


def test_no_image_is_shown_twice():
    triplets = np.array([[0, 1, 2], [1, 0, 3], [3, 4, 5], [6, 7, 2], [6, 7, 8], [9, 10, 11]])
    assert without_repeats(triplets, 8).tolist() == [0, 2, 4, 5]
    assert without_repeats(triplets, 2).tolist() == [0, 2]
    assert without_repeats(triplets[:0], 8).tolist() == []


@given(count=st.integers(1, 40), side=st.integers(1, 5))
def test_sprite_holds_each_thumbnail_in_its_place(count, side):
    thumbnails = np.random.default_rng(count).integers(0, 255, [count, side, side, 3], np.uint8)
    sheet = np.asarray(sprite(thumbnails))
    # TensorBoard computes a thumbnail's place from the image's width alone.
    across = sheet.shape[1] // side
    assert sheet.shape == (-(-count // across) * side, across * side, 3)
    assert (across - 1) ** 2 < count <= across**2
    for place, thumbnail in enumerate(thumbnails):
        top, left = place // across * side, place % across * side
        np.testing.assert_array_equal(sheet[top : top + side, left : left + side], thumbnail)


def test_sprite_of_all_points_can_be_drawn():
    assert int(np.ceil(tensorboard.POINTS**0.5)) * tensorboard.THUMBNAIL <= 8192


def test_pictures_are_those_of_evaluation(images):
    rows = np.array([7, 2, 5])
    whole, rows_read = images_as_evaluated(images, rows, 99)
    assert rows_read.tolist() == rows.tolist()
    assert (whole.shape, whole.dtype) == ((3, SIDE, SIDE, 3), np.uint8)
    small, _ = images_as_evaluated(images, rows, SIDE // 2)
    means = whole.reshape(3, SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - means).max() <= 0.5


def test_batch(board, images, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        tensorboard,
        "contact_sheet",
        lambda *tiles, **rest: shown.append(tiles) or Image.new("RGB", (30, 20), (1, 2, 3)),
    )
    rows = np.array([20, 21, 4, 5, 30, 31])
    board.batch(7, last_batch(), rows, images)
    board.close()
    written = events(tmp_path)
    step, buckets = written["train/mined/positive"]
    assert step == 7
    assert (buckets[0, 0], buckets[-1, 1], buckets[:, 2].sum()) == (1, 5, 4)
    buckets = written["train/mined/negative"][1]
    assert (buckets[0, 0], buckets[-1, 1], buckets[:, 2].sum()) == (3, 9, 4)
    width, height, data = written["train/hardest_triplets"][1].tolist()
    assert (int(width), int(height)) == (30, 20)
    assert np.asarray(Image.open(io.BytesIO(data)))[0, 0].tolist() == [1, 2, 3]

    # The costliest triplet has rows 4, 5 and 30. Each other triplet shares an image with it.
    [(anchors, others)] = shown
    assert len(anchors) == len(others) == 1
    tiles = [anchors[0], *others[0]]
    names = images.index.class_names()
    texts = [names[int(images.index.label[row])] for row in (4, 5, 30)]
    assert [tile.caption for tile in tiles] == [texts[0], f"3.00 {texts[1]}", f"7.00 {texts[2]}"]
    assert [tile.match for tile in tiles] == [None, True, False]
    for tile, row in zip(tiles, (4, 5, 30), strict=True):
        [pixels], _ = images_as_evaluated(images, np.array([row]), SIDE)
        np.testing.assert_array_equal(tile.image, pixels)


def test_batch_without_triplets(board, images, tmp_path):
    last = last_batch()
    none = LastBatch(last.embeddings, last.positive, last.negative, np.full(6, NONE, np.float32))
    board.batch(7, none, np.arange(6), images)
    board.close()
    assert not events(tmp_path)


def test_a_picture_that_cannot_be_read_is_left_out(board, images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tensorboard,
        "images_as_evaluated",
        lambda images, rows, side: (np.zeros([len(rows) - 1, 4, 4, 3], np.uint8), rows[1:]),
    )
    board.batch(7, last_batch(), np.arange(6), images)
    board.points(np.eye(4, dtype=np.float32), np.array([3, 5, 8, 9]), images)
    board.close()
    assert "train/hardest_triplets" in events(tmp_path)
    with Image.open(tmp_path / "points" / "sprite.png") as file:
        assert np.asarray(file)[:4].max(axis=(0, 2)).tolist() == [255] * 4 + [0] * 4


def config(folder) -> str:
    return (folder / "projector_config.pbtxt").read_text()


def test_points(board, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "POINTS", 5)
    rows = np.arange(2, 22, 2)
    embeddings = np.random.default_rng(0).normal(size=[10, 3]).astype(np.float32)
    board.points(embeddings, rows, images)
    # Five places are spaced evenly over ten: 0, 2.25, 4.5, 6.75 and 9, rounded to even numbers.
    places = [0, 2, 4, 7, 9]
    written = np.fromfile(tmp_path / "points" / "tensors.bytes", "<f4").reshape(5, 3)
    np.testing.assert_array_equal(written, embeddings[places])
    head, *lines = (tmp_path / "points" / "metadata.tsv").read_text().splitlines()
    assert head == "class\tsource_id"
    names, sources = images.index.class_names(), images.index.column("source_id").to_pylist()
    chosen = rows[places].tolist()
    assert lines == [f"{names[int(images.index.label[row])]}\t{sources[row]}" for row in chosen]
    with Image.open(tmp_path / "points" / "sprite.png") as file:
        thumbnails = images_as_evaluated(images, rows[places], 64)[0]
        np.testing.assert_array_equal(np.asarray(file), np.asarray(sprite(thumbnails)))
    assert re.findall(r"(?:shape|dim): (\d+)", config(tmp_path)) == ["5", "3", "16", "16"]


def test_points_take_the_place_of_those_before(board, images, tmp_path, monkeypatch):
    rows = np.arange(4)
    board.points(np.zeros([4, 2], np.float32), rows, images)
    # The same images are not read again.
    monkeypatch.setattr(tensorboard, "images_as_evaluated", None)
    board.points(np.ones([4, 2], np.float32), rows, images)
    assert np.fromfile(tmp_path / "points" / "tensors.bytes", "<f4").tolist() == [1] * 8


def test_no_points(board, images, tmp_path):
    board.points(np.zeros([0, 2], np.float32), np.zeros(0, np.int64), images)
    assert not list(tmp_path.glob("p*"))


def test_tensorboard_knows_the_config(board, images, tmp_path):
    text_format = pytest.importorskip("google.protobuf.text_format")
    plugin = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    embeddings = np.random.default_rng(0).normal(size=[4, 2]).astype(np.float32)
    board.points(embeddings, np.arange(4), images)
    [of] = text_format.Parse(config(tmp_path), plugin.ProjectorConfig()).embeddings
    assert (of.tensor_name, list(of.tensor_shape)) == ("train", [4, 2])
    assert list(of.sprite.single_image_dim) == [SIDE, SIDE]
    for path in (of.tensor_path, of.metadata_path, of.sprite.image_path):
        assert (tmp_path / path).is_file()
