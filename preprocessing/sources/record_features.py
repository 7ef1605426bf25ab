"""Reads the image, the class and other values from the features of a tf.Example record."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from preprocessing.sources.references import shortened
from tripletmill.formats.records import example_features
from tripletmill.images import BadImage

NO_CLASS = -1  # the usual label of an image that nobody has labelled


class RecordFeatures:
    """The features of one record, each of which must have one value.

    Every method raises BadImage if a feature has several values, text that is not UTF-8, or another
    kind of value than the method reads.
    """

    def __init__(self, payload: bytes) -> None:
        """Parses a serialized tf.Example. Raises BadImage if it is none."""
        try:
            self._features = example_features(payload)
        except ValueError as error:
            raise BadImage(str(error)) from error

    @property
    def names(self) -> set[str]:
        """The names of all features."""
        return {*self._features}

    def image(self, name: str) -> bytes:
        """The bytes of an image file. Raises BadImage if the feature is missing or empty."""
        self._require(name)
        image = self._value(name)
        if image is None:
            raise BadImage(f"feature {name!r} is empty")
        if not isinstance(image, bytes):
            raise BadImage(f"feature {name!r} is a number, not the bytes of an image file")
        return image

    def has_class(self, name: str) -> bool:
        """Whether the feature says which class the image has."""
        return bool((self.text(name) or "").strip()) and self._value(name) != NO_CLASS

    def class_name(self, name: str, names: Sequence[str] | None) -> str:
        """The class that a feature says, as text or as an integer.

        Args:
          name: the feature.
          names: the names of the classes 0, 1, ..., or None if numbers serve as names.

        Raises:
          BadImage: the feature is missing or empty, or it says no class.
        """
        text, label = self.required(name), self._value(name)
        if isinstance(label, float):
            raise BadImage(f"feature {name!r} is a float, not a class")
        if label == NO_CLASS:
            raise BadImage(f"feature {name!r} is {NO_CLASS}, which means no class")
        if isinstance(label, bytes) or names is None:
            return text
        if not 0 <= label < len(names):
            raise BadImage(f"feature {name!r} is a number without a name")
        return names[label]

    def required(self, name: str) -> str:
        """The value as text. Raises BadImage if the feature is missing, empty or white space."""
        self._require(name)
        text = self.text(name)
        if text is None or not text.strip():
            raise BadImage(f"feature {name!r} is empty")
        return text

    def text(self, name: str) -> str | None:
        """The value as text, or None if the feature is missing or empty."""
        value = self._value(name)
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise BadImage(f"feature {name!r} is not text in UTF-8") from None
        if isinstance(value, float):
            return str(np.float32(value))  # 0.1, not 0.10000000149
        return None if value is None else str(value)

    def _value(self, name: str) -> Any:
        values = self._features.get(name, [])
        if len(values) > 1:
            raise BadImage(f"feature {name!r} has several values")
        return values[0] if values else None

    def _require(self, name: str) -> None:
        if name not in self._features:
            names = [*self._features]
            there = f"there are: {shortened(names)}" if names else "there are none"
            raise BadImage(f"no feature {name!r}; {there}")
