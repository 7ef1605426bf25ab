"""The numbers of a report on queries in a gallery, where images have groups."""

import dataclasses

import numpy as np
import pytest

from tests.fixtures.embedded import unit_vectors, write_embeddings
from tests.fixtures.retrieval import oracle
from tests.fixtures.written import write_data_set
from trainer.report.analysis import DEEPEST, analyse
from trainer.report.inputs import Inputs
from tripletmill.errors import UsageError
from tripletmill.formats.embeddings import load_embeddings
from tripletmill.formats.index import load_info

QUERIES, GALLERY = 12, 30


@pytest.fixture
def given(tmp_path) -> Inputs:
    """Twelve queries and thirty images; a label is the length of a class name."""
    rng = np.random.default_rng(3)
    names = ["a", "bb", "ccc"]
    folder = write_embeddings(
        tmp_path / "embeddings",
        unit_vectors(QUERIES + GALLERY, 4),
        split=["query"] * QUERIES + ["gallery"] * GALLERY,
        class_name=[*rng.choice(names, QUERIES + GALLERY)],
    )
    return Inputs(
        info=load_info(str(write_data_set(tmp_path / "data"))),
        embeddings=load_embeddings(str(folder)),
        names={len(name): name for name in names},
        group=rng.choice(np.array(["x", "y", None], object), QUERIES + GALLERY),
        queries=np.arange(QUERIES),
        gallery=np.arange(QUERIES, QUERIES + GALLERY),
        split="query",
        searched="gallery",
        evaluation=None,
        history=[],
    )


def ranked(given: Inputs) -> list[list[int]]:
    """For each query, all rows of the gallery that count, nearest first."""
    of, ranked_rows = given.embeddings, []
    for query in given.queries:
        group = given.group[query]
        is_left_out = (of.label == of.label[query]) & (group is not None) & (given.group == group)
        counted = [row for row in given.gallery.tolist() if not is_left_out[row]]
        order = oracle.order(of.embedding[query], of.embedding, counted)
        ranked_rows.append([row for _, row in order])
    return ranked_rows


def test_query_against_gallery_with_groups(given):
    analysis = analyse(given)
    of, q, g = given.embeddings, given.queries, given.gallery
    cutoffs = [1, 2, 5, DEEPEST]
    expected = oracle.metrics(
        of.embedding[q],
        of.label[q].tolist(),
        cutoffs,
        groups=given.group[q],
        gallery=(of.embedding[g], of.label[g].tolist(), given.group[g]),
    )
    assert analysis.metrics.queries.tolist() == sorted(expected)
    names = [*(f"recall_at_{k}" for k in cutoffs), "map_at_r", "r_precision"]
    means = np.mean([*expected.values()], axis=0)
    for name, mean in zip([*names, "mean_reciprocal_rank"], means, strict=True):
        assert analysis.metrics.mean[name] == pytest.approx(mean)
    every = ranked(given)
    for shown, rows in zip(analysis.neighbours, every, strict=True):
        assert shown == rows[:10]
    wrong = [(query, rows[0]) for query, rows in enumerate(every)]
    wrong = [pair for pair in wrong if of.label[pair[0]] != of.label[pair[1]]]
    assert wrong
    assert sorted(pair for each in analysis.confusions for pair in each.examples) == wrong
    counts = [len(each.examples) for each in analysis.confusions]
    assert counts == sorted(counts, reverse=True)


def test_a_split_without_matches_is_refused(given):
    alone = dataclasses.replace(given, queries=given.queries[:1], gallery=None, searched=None)
    with pytest.raises(UsageError, match="no image of query has a match in query; choose another"):
        analyse(alone)
