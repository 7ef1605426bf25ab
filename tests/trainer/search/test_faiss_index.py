"""Approximate indexes are reproducible, have a measured recall, and return enough neighbours."""

import os
import re
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.fixtures.embedded import unit_vectors, write_embeddings
from tests.fixtures.search import oracle
from tests.fixtures.search.commands import command
from trainer.search import faiss_index, index_files
from trainer.search.build import add, build, summary
from trainer.search.index import SearchIndex
from trainer.search.recall import Recall, measure
from tripletmill.errors import UsageError

ROWS = {"hnsw": 2_000, "ivfpq": 10_000}
DIM = 16


def vectors_of(kind: str) -> np.ndarray:
    return unit_vectors(ROWS[kind], DIM, clusters=40)


def build_by_command(root: Path, index: str, kind: str, threads: int) -> str:
    flags = [f"--embeddings={root / 'e'}", f"--index_dir={root / index}", f"--kind={kind}"]
    done = command("build", *flags, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    assert done.returncode == 0, done.stderr
    # Progress is printed only where the work takes ten seconds.
    progress = re.compile(r"(training|added|measuring|read)\b")
    assert all(progress.match(line) for line in done.stderr.splitlines()), done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=ROWS)
def built(request, tmp_path_factory) -> tuple[str, Path, str]:
    """The kind of an index, the index's folder, and what the command printed."""
    root = tmp_path_factory.mktemp(request.param)
    write_embeddings(root / "e", vectors_of(request.param))
    return request.param, root / "one", build_by_command(root, "one", request.param, threads=1)


def test_the_same_on_any_number_of_threads(built):
    kind, one, _ = built
    build_by_command(one.parent, "two", kind, threads=2)
    for file in one.iterdir():
        assert file.read_bytes() == (one.parent / "two" / file.name).read_bytes(), file.name


def test_its_queries_were_held_out(built):
    kind, directory, printed = built
    info, contents = index_files.read(str(directory))
    recall = info.recall
    assert (recall.num_queries, recall.num_rows) == (1_000, ROWS[kind] - 1_000)
    rows = [int(name[:5]) for name in contents.rows["source_id"].to_pylist()]
    assert sorted(rows) == list(range(ROWS[kind]))
    first, last = rows[:-1_000], rows[-1_000:]
    assert (first, last) == (sorted(first), sorted(last))
    assert max(first) - min(last) > ROWS[kind] / 2  # the queries are drawn from all rows
    np.testing.assert_array_equal(contents.vectors, vectors_of(kind)[rows])
    assert "1,000 images before they were added" in printed
    for value, share in recall.by_setting.items():
        assert f"{value}: {share:.3f}" in printed
    assert f"{recall.parameter} = {recall.setting}, for 0.95" in printed


@pytest.mark.parametrize("kind", ROWS)
def test_measured_recall_is_that_of_brute_force(kind):
    vectors = unit_vectors(ROWS[kind], DIM)  # vectors without clusters are harder to search
    queries = unit_vectors(40, DIM, seed=5)
    index = faiss_index.make(kind, vectors)
    faiss_index.add(index, vectors, lambda _: None)
    recall = measure(index, vectors, queries, target=0.9)
    assert list(recall.by_setting) == sorted(recall.by_setting)
    assert len(recall.by_setting) > 1
    true = [{row for row, _ in oracle.nearest(vectors, query, 10)} for query in queries]
    for value, share in recall.by_setting.items():
        if kind == "hnsw":
            index.hnsw.efSearch = value
        else:
            index.nprobe = value
        hits = 0
        proposed = index.search(queries, 10 if kind == "hnsw" else 100)[1]
        for query, rows, true_rows in zip(queries, proposed, true, strict=True):
            near = oracle.nearest(vectors, query, 10, rows[rows >= 0].tolist())
            hits += len(true_rows & {row for row, _ in near})
        assert share == pytest.approx(hits / 400, abs=1e-4)
    assert min(recall.by_setting.values()) < 1


def test_answers(built):
    kind, directory, _ = built
    index = SearchIndex.load(str(directory))
    _, contents = index_files.read(str(directory))
    vectors = np.array(contents.vectors)
    queries = unit_vectors(40, DIM, clusters=40, seed=6)
    hits = 0
    for query, neighbours in zip(queries, index.nearest(queries, 10), strict=True):
        distances = oracle.distances(vectors, query)
        pairs = [(each.distance, each.entry.row) for each in neighbours]
        assert pairs == sorted(pairs)
        assert all(distances[row] == distance for distance, row in pairs)
        hits += len(set(pairs) & {(d, row) for row, d in oracle.nearest(vectors, query, 10)})
    assert hits >= 400 * (index.info.recall.by_setting[index.info.recall.setting] - 0.05)
    # All rows are asked for. A graph need not have a path to each row, so the search is exact here.
    [neighbours] = index.nearest(queries[:1], ROWS[kind] + 5)
    assert [e.entry.row for e in neighbours] == [
        row for row, _ in oracle.nearest(vectors, queries[0], len(vectors))
    ]
    [alone] = [index.nearest_of(index.entries([7])[0].source_id, 3)]
    assert 7 not in [each.entry.row for each in alone]
    assert len(alone) == 3


def test_recall_is_measured_again_when_it_has_grown(tmp_path):
    vectors = unit_vectors(1_500, DIM, clusters=40)
    names = [f"{row}" for row in range(1_500)]

    def collection(start, end):
        rows = slice(start, end)
        folder = tmp_path / f"e{start}"
        return [str(write_embeddings(folder, vectors[rows], source_id=names[rows]))]

    index = str(tmp_path / "i")
    info = build(directory=index, embeddings_dirs=collection(0, 1_000), kind="hnsw", target=0.9)
    assert (info.recall.num_rows, info.recall.num_queries) == (500, 500)
    first = info.recall
    info = add(directory=index, embeddings_dirs=collection(1_000, 1_020))
    assert (info.num_rows, info.recall) == (1_020, first)
    info = add(directory=index, embeddings_dirs=collection(1_020, 1_400))
    assert (info.recall.num_rows, info.recall.num_queries) == (1_210, 190)
    assert info.recall.target == 0.9
    _, contents = index_files.read(index)
    rows = [int(name) for name in contents.rows["source_id"].to_pylist()]
    np.testing.assert_array_equal(contents.vectors, vectors[rows])
    assert sorted(rows) == list(range(1_400))


def test_setting_by_hand():
    def chosen(by_setting, target):
        recall = Recall("efSearch", by_setting, target, 10, 90)
        return recall.setting, recall.reached

    assert chosen({16: 0.8, 32: 0.95, 64: 0.99}, 0.95) == (32, True)
    assert chosen({16: 0.8, 32: 0.95, 64: 0.99}, 0.96) == (64, True)
    assert chosen({16: 0.8, 32: 0.85, 64: 0.84}, 0.96) == (32, False)


def test_a_target_that_is_not_reached_is_said(tmp_path):
    recall = Recall("efSearch", {16: 0.8, 32: 0.85}, 0.95, 1_000, 2_000)
    info = index_files.IndexInfo("i", "m", 8, 5_000, "hnsw", recall, inputs=[])
    text = "\n".join(summary(info, 0))
    assert "warning: no efSearch reaches 0.95" in text
    assert "3,000 images were added since" in text


def test_kind_by_size():
    kinds = [faiss_index.choose_kind(rows, 128) for rows in (0, 500_000, 500_001, 4_000_000)]
    assert kinds == ["flat", "flat", "hnsw", "hnsw"]
    assert faiss_index.choose_kind(4_000_001, 128) == "ivfpq"
    assert faiss_index.choose_kind(4_000_001, 126) == "hnsw"


def test_too_few_or_odd_for_codes():
    for rows, dim, words in ((9_983, 8, "9,984 images"), (9_984, 6, "divisible by 4")):
        with pytest.raises(UsageError, match=words):
            faiss_index.require_possible("ivfpq", rows, dim)
    faiss_index.require_possible("ivfpq", 9_984, 8)


def test_another_kind_of_faiss_is_not_ours():
    with pytest.raises(ValueError, match="IndexIVFFlat"):
        faiss_index.kind_of(faiss.IndexIVFFlat(faiss.IndexFlatL2(4), 4, 2))
