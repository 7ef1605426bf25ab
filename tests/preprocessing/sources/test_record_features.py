"""What the features of a tf.Example say; bad values are in test_tfrecords.py."""

import pytest

from preprocessing.sources.record_features import RecordFeatures
from tripletmill.formats.records import encode_example
from tripletmill.images import BadImage

RECORD = RecordFeatures(encode_example({"image": b"data", "label": 1, "name": "cat", "none": -1}))


def test_values():
    assert RECORD.names == {"image", "label", "name", "none"}
    assert RECORD.image("image") == b"data"
    assert (RECORD.text("label"), RECORD.required("name")) == ("1", "cat")
    assert RECORD.text("other") is None


def test_classes():
    assert RECORD.has_class("label")
    assert RECORD.has_class("name")
    assert not RECORD.has_class("none")
    assert not RECORD.has_class("other")
    assert RECORD.class_name("label", None) == "1"
    assert RECORD.class_name("label", ["cat", "dog"]) == "dog"
    assert RECORD.class_name("name", ["dog"]) == "cat"
    for name, names in (("none", None), ("label", ["cat"]), ("other", None)):
        with pytest.raises(BadImage):
            RECORD.class_name(name, names)
