"""A TensorFlow Datasets builder for class folders, with Beam.

It has its own module, because TFDS does not accept a builder in `__main__`.
"""

import io
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from apache_beam import Create, FlatMap, PTransform, Reshuffle

from tripletmill.images import ImageSettings, canonical_jpeg


class PhotoFolder(tfds.core.GeneratorBasedBuilder):
    """Images in class folders. Every second class is for test, as in our job."""

    VERSION = tfds.core.Version("1.0.0")
    # Otherwise TFDS would look for download checksums with a package that it does not require.
    code_path = None

    def __init__(self, root: str, short_side: int, **options: Any) -> None:
        self._root = root
        self._settings = ImageSettings(short_side=short_side)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=sorted(os.listdir(self._root))),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        names = sorted(os.listdir(self._root))
        return {
            "train": self._generate_examples(names[::2]),
            "test": self._generate_examples(names[1::2]),
        }

    def _generate_examples(self, names: list[str]) -> PTransform:
        folders = [os.path.join(self._root, name) for name in names]
        return (
            Create(folders)
            | FlatMap(images_of)
            | Reshuffle()
            | FlatMap(example, settings=self._settings)
        )


def images_of(folder: str) -> Iterator[str]:
    """Yields the paths of the images in a class folder."""
    for name in os.listdir(folder):
        yield os.path.join(folder, name)


def example(path: str, settings: ImageSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the key and the features of one image."""
    with open(path, "rb") as file:
        jpeg = canonical_jpeg(file.read(), settings).jpeg
    label, name = path.split(os.sep)[-2:]
    key = f"{label}/{name}"
    yield key, {"image": io.BytesIO(jpeg), "image/filename": key, "label": label}
