"""Filters and source ids compared with brute force, and one index in many threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.embedded import unit_vectors, write_embeddings
from tests.fixtures.search import oracle
from trainer.search.build import build
from trainer.search.index import Entry, SearchIndex
from tripletmill.errors import UsageError

CLASSES, SPLITS = ("cat", "dog", None), ("train", "test", None)
NUM = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index, its vectors (some of them copies), its classes and its splits."""
    root = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    vectors = unit_vectors(40)[rng.integers(0, 40, NUM)]
    classes = [CLASSES[i] for i in rng.integers(0, 3, NUM)]
    splits = [SPLITS[i] for i in rng.integers(0, 3, NUM)]
    collection = write_embeddings(root / "e", vectors, class_name=classes, split=splits)
    build(directory=str(root / "i"), embeddings_dirs=[str(collection)])
    return SearchIndex.load(str(root / "i")), vectors, classes, splits


def pairs(neighbours):
    return [(each.entry.row, each.distance) for each in neighbours]


@settings(max_examples=80, deadline=None)
@given(
    class_name=st.sampled_from(CLASSES),
    split=st.sampled_from(SPLITS),
    k=st.integers(1, NUM + 5),
    row=st.integers(0, NUM - 1),
)
def test_filters(made, class_name, split, k, row):
    index, vectors, classes, splits = made
    rows = [
        i for i in range(NUM) if class_name in (None, classes[i]) and split in (None, splits[i])
    ]
    wanted = {"class_name": class_name, "split": split}
    query = unit_vectors(1, seed=row)
    [neighbours] = index.nearest(query, k, **wanted)
    assert pairs(neighbours) == oracle.nearest(vectors, query[0], k, rows)
    others = [i for i in rows if i != row]
    neighbours = index.nearest_of(f"{row:05d}.jpg", k, **wanted)
    assert pairs(neighbours) == oracle.nearest(vectors, vectors[row], k, others)


def test_entries(made):
    index, _, classes, splits = made
    assert len(index) == NUM
    assert (index.class_names, index.splits) == (["cat", "dog"], ["test", "train"])
    for row in (0, 13, NUM - 1):
        label = -1 if classes[row] is None else 3
        expected = Entry(row, f"{row:05d}.jpg", splits[row], label, classes[row])
        assert index.entry(f"{row:05d}.jpg") == expected
    assert index.entries([]) == []


def test_refusals(made):
    index = made[0]
    with pytest.raises(UsageError, match=r"'cta': no image .* there is 'cat'"):
        index.nearest(unit_vectors(1), class_name="cta")
    with pytest.raises(UsageError, match="split 'val'"):
        index.check_filter(split="val")
    with pytest.raises(UsageError, match="source_id nobody"):
        index.nearest_of("nobody")
    with pytest.raises(UsageError, match="unit length"):
        index.nearest(2 * unit_vectors(1))
    with pytest.raises(ValueError, match=r"\[Q, 8\]"):
        index.nearest(unit_vectors(1)[0])
    with pytest.raises(ValueError, match="at least 1"):
        index.nearest(unit_vectors(1), 0)
    assert index.nearest(np.empty((0, 8), np.float32)) == []


def test_many_threads_give_the_answers_of_one(made):
    index = made[0]
    queries = [unit_vectors(20, seed=seed) for seed in range(40)]
    alone = [index.nearest(each, 5) for each in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda each: index.nearest(each, 5), queries)) == alone
