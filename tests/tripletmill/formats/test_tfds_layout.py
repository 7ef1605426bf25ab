"""The content of the two JSON files; test_readers opens them with TensorFlow Datasets."""

import json

import pytest

from tripletmill.formats.tfds_layout import SplitInfo, dataset_info_json, extra_of

SPLITS = {
    "train": SplitInfo(shard_lengths=[3, 0, 2**40], num_bytes=2**50),
    "test": SplitInfo(shard_lengths=(1,), num_bytes=10),
}
EXTRA = {"settings": {"short_side": 256, "ratio": 0.5}, "format_version": 1, "text": "ü\n"}


def test_dataset_info():
    info = dataset_info_json(name="flowers", splits=SPLITS, extra=EXTRA)
    assert info["name"] == "flowers"
    assert info["version"].count(".") == 2
    assert [(split["name"], split["shardLengths"]) for split in info["splits"]] == [
        ("test", ["1"]),
        ("train", ["3", "0", str(2**40)]),
    ]
    assert info["splits"][1]["numBytes"] == str(2**50)


def test_deterministic():
    reordered = {key: EXTRA[key] for key in reversed(EXTRA)}
    splits = {name: SPLITS[name] for name in reversed(SPLITS)}
    assert json.dumps(dataset_info_json(name="a", splits=splits, extra=reordered)) == json.dumps(
        dataset_info_json(name="a", splits=SPLITS, extra=EXTRA)
    )


def test_extra_round_trip():
    info = dataset_info_json(name="flowers", splits=SPLITS, extra=EXTRA)
    assert extra_of(json.loads(json.dumps(info))) == EXTRA


NOTES: tuple = ({}, None, {"tripletmill": "{"}, {"tripletmill": "[]"})


@pytest.mark.parametrize("info", [{}, [], *({"releaseNotes": notes} for notes in NOTES)])
def test_extra_of_another_file(info):
    with pytest.raises(ValueError, match="did not write"):
        extra_of(info)


def test_extra_must_be_json():
    for extra, error in (({"a": {1}}, TypeError), ({"a": float("nan")}, ValueError)):
        with pytest.raises(error):
            dataset_info_json(name="a", splits={}, extra=extra)
