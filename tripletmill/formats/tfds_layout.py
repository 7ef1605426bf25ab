"""Content of features.json and dataset_info.json, in the form that TensorFlow Datasets reads.

`tfds.builder_from_directory` reads both files. TFDS parses dataset_info.json as a protobuf message
(DatasetInfo) and refuses unknown keys. So tripletmill's own data are JSON text in `releaseNotes`,
which is the only place for free text with keys.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

_VERSION = "1.0.0"  # TFDS requires a version; tripletmill's format version is in `extra`
_EXTRA_KEY = "tripletmill"
_CONNECTORS = "tensorflow_datasets.core.features"


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """Size of a split.

    Attributes:
      shard_lengths: number of records in each shard, in order.
      num_bytes: bytes of all shards together.
    """

    shard_lengths: Sequence[int]
    num_bytes: int


def features_json() -> dict[str, Any]:
    """Returns the content of features.json. TFDS decodes an image as uint8 [height, width, 3]."""
    integer = _feature("scalar.Scalar", tensor=_tensor("int64"))
    text = _feature("text_feature.Text", text={})
    # A hash is not Text, because TFDS shows Text as UTF-8.
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
    """Returns the content of dataset_info.json.

    The order of keys in `splits` and `extra` does not change the result.

    Args:
      name: first part of the shards' names, as in <name>-<split>.tfrecord-00000-of-00064.
      splits: size of each split by its name; may be empty.
      extra: tripletmill's own data, which must be JSON; `extra_of` returns them.

    Raises:
      TypeError: `extra` contains an object of a type that JSON does not have.
      ValueError: `extra` contains a number that JSON does not have, such as NaN.
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
    """Returns the `extra` that dataset_info.json was written with.

    Raises:
      ValueError: tripletmill did not write this content.
    """
    try:
        return {**json.loads(dataset_info["releaseNotes"][_EXTRA_KEY])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("a dataset_info.json that tripletmill did not write") from error


def _feature(connector: str, **content: Mapping[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{_CONNECTORS}.{connector}", **content}


def _tensor(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "encoding": "none", "shape": {}}
