"""Rows by class against a plain search for each label, in any order of the rows."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.class_rows import ClassRows


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(-2, 8), min_size=1, max_size=60),
    is_sorted=st.booleans(),
    min_images=st.integers(1, 4),
    most=st.integers(1, 5),
)
def test_rows_are_those_of_the_label(labels, is_sorted, min_images, most):
    label = np.array(sorted(labels) if is_sorted else labels, np.int32)
    class_rows = ClassRows(SimpleNamespace(label=label), min_images=min_images)
    expected = {
        number: np.flatnonzero(label == number).tolist()
        for number in sorted({*labels})
        if (label == number).sum() >= min_images
    }
    assert class_rows.labels.tolist() == [*expected]
    assert class_rows.num_classes == len(expected)
    assert class_rows.num_skipped == len({*labels}) - len(expected)
    assert class_rows.counts.tolist() == [len(rows) for rows in expected.values()]
    for place, rows in enumerate(expected.values()):
        numbers = np.arange(len(rows))
        assert class_rows.rows(np.array([place]), numbers).tolist() == rows
    first, classes = class_rows.first_rows(most)
    assert first.tolist() == [row for each in expected.values() for row in each[:most]]
    assert label[first].tolist() == class_rows.labels[classes].tolist()


def test_an_empty_index():
    class_rows = ClassRows(SimpleNamespace(label=np.empty(0, np.int32)))
    assert class_rows.num_classes == 0
    assert [part.tolist() for part in class_rows.first_rows(3)] == [[], []]
