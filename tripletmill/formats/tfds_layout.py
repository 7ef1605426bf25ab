"""features.json and dataset_info.json as TensorFlow Datasets reads them (builder_from_directory).

TFDS parses dataset_info.json as its DatasetInfo message and refuses unknown keys, so this
project's own data are JSON text in the one place made for free text by key, `releaseNotes`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

_VERSION = "1.0.0"  # TFDS wants one; the format version of this project is in the extra data
_EXTRA_KEY = "tripletmill"
_CONNECTORS = "tensorflow_datasets.core.features"


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """shard_lengths: records by shard, in order. num_bytes: of all records together."""

    shard_lengths: Sequence[int]
    num_bytes: int


def features_json() -> dict[str, Any]:
    """Content of features.json: the image decodes as uint8 [height, width, 3]."""
    integer = _feature("scalar.Scalar", tensor=_tensor("int64"))
    text = _feature("text_feature.Text", text={})
    # Not Text: TFDS shows that as UTF-8.
    binary = _feature("tensor_feature.Tensor", tensor=_tensor("string"))
    any_size = {"dimensions": ["-1", "-1", "3"]}
    image = {"shape": any_size, "dtype": "uint8", "encodingFormat": "jpeg"}
    features = {
        "image/class/label": integer,
        "image/class/text": text,
        "image/encoded": _feature("image_feature.Image", image=image),
        "image/format": text,
        "image/height": integer,
        "image/key/sha256": binary,
        "image/source_id": text,
        "image/width": integer,
    }
    return {
        "content": {"features": features},
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "type": f"{_CONNECTORS}.features_dict.FeaturesDict",
    }


def dataset_info_json(
    *, name: str, splits: Mapping[str, SplitInfo], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of dataset_info.json, for shards named <name>-<split>.tfrecord-00000-of-00064.

    `extra` is anything that JSON can hold; extra_of gives it back. The same arguments, in whatever
    order, give the same result.

    Raises TypeError or ValueError where `extra` is no JSON.
    """
    return {
        "description": "Images for similarity learning, written by tripletmill.",
        "fileFormat": "tfrecord",
        "name": name,
        "releaseNotes": {_EXTRA_KEY: json.dumps(extra, sort_keys=True, allow_nan=False)},
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                # 64-bit integers are text in the JSON of a protobuf message.
                "numBytes": str(info.num_bytes),
                "shardLengths": [str(length) for length in info.shard_lengths],
            }
            for split, info in sorted(splits.items())
        ],
        "version": _VERSION,
    }


def extra_of(dataset_info: Mapping[str, Any]) -> dict[str, Any]:
    """The `extra` of dataset_info_json. Raises ValueError where dataset_info is not of its kind."""
    try:
        extra = json.loads(dataset_info["releaseNotes"][_EXTRA_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("a dataset_info.json that tripletmill did not write") from error
    if not isinstance(extra, dict):
        raise ValueError("a dataset_info.json that tripletmill did not write")
    return extra


def _feature(connector: str, **content: Mapping[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{_CONNECTORS}.{connector}", **content}


def _tensor(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "encoding": "none", "shape": {}}
