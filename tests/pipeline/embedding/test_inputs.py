"""The inputs of an embedding job: their splits, their tasks, and the shard of each image."""

import collections

import pytest

from pipeline.embedding.inputs import InputSummary, Planned, open_records, place_images
from pipeline.preprocess.listing import FileChunk
from preprocessing.sources.references import ImageRef
from preprocessing.writing.claim import Claim
from preprocessing.writing.plan import ClassSummary
from tests.fixtures.datasets import small_data_set
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_info

IMAGES = [ImageRef(f"{i}.png", f"/no/{i}.png", "", size=1) for i in range(400)]


def test_an_image_is_placed_by_its_name_alone():
    planned = Planned(
        InputSummary({}, ClassSummary({None: len(IMAGES)}), num_shards=4), Claim("/out", {})
    )
    shards = collections.defaultdict(set)
    for images in (IMAGES[:100], IMAGES[:99:-1]):
        for number, placed in place_images(FileChunk(images), planned):
            shards[number].update(placed)
    at_once = place_images(FileChunk(IMAGES), planned)
    assert shards == {number: {*placed} for number, placed in at_once}
    assert sorted(shards) == [0, 1, 2, 3]
    assert sum(map(len, shards.values())) == len(IMAGES)
    assert all(60 < len(placed) < 140 for placed in shards.values())
    finished = Planned(planned.input, None)
    assert list(place_images(FileChunk(IMAGES), finished)) == []


def test_records_have_a_task_for_each_shard(tmp_path):
    data = str(small_data_set(tmp_path, classes=4, images=6))
    info = load_info(data)
    tasks = open_records(data, None).tasks()
    assert [task.number for task in tasks] == list(range(sum(info.num_shards.values())))
    assert [task.split for task in tasks] == sorted(task.split for task in tasks)
    assert sum(task.count for task in tasks) == 24
    [train_first, train_second] = open_records(data, ["train"]).tasks()
    assert (train_first.first_row, train_second.first_row) == (0, train_first.count)
    whole, part = (open_records(data, splits).description() for splits in (None, ["train"]))
    assert part["splits"] == ["train"]
    assert whole["fingerprint"] != part["fingerprint"]
    with pytest.raises(UsageError, match="no split 'query', only test, train, val"):
        open_records(data, ["query"])
