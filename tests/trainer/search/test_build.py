"""Builds an index and adds to it: what goes in, what is left out, and that it is always whole."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.embedded import unit_vectors, write_embeddings
from tests.fixtures.project import ROOT
from tests.fixtures.search.commands import command
from trainer.search import index_files
from trainer.search.build import add, build, summary
from trainer.search.index import SearchIndex
from tripletmill.errors import UsageError


def held(directory: Path) -> tuple[list[dict], list[list[float]]]:
    """The rows and vectors of an index."""
    _, contents = index_files.read(str(directory))
    return contents.rows.to_pylist(), contents.vectors.tolist()


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def numbers(info: index_files.IndexInfo) -> list[tuple[int, int, int]]:
    return [(e["added"], e["there_already"], e["left_out"]) for e in info.inputs]


def test_what_goes_in_is_held(tmp_path):
    vectors = unit_vectors(5)
    names = ["ü.jpg", "b/1", "b/2", "c", "d"]
    classes, splits = ["x", "x", None, "yyy", "x"], ["test", None, "train", "test", "test"]
    given = {"source_id": names, "class_name": classes, "split": splits}
    collection = write_embeddings(tmp_path / "e", vectors, **given)
    info = build(directory=str(tmp_path / "i"), embeddings_dirs=[str(collection)])
    rows, embeddings = held(tmp_path / "i")
    assert embeddings == vectors.tolist()
    labels = [1, 1, None, 3, 1]
    expected = zip(names, splits, labels, classes, strict=True)
    keys = ("source_id", "split", "label", "class")
    assert rows == [dict(zip(keys, row, strict=True)) for row in expected]
    assert (info.kind, info.num_rows, info.dim, info.recall) == ("flat", 5, 8, None)
    assert numbers(info) == [(5, 0, 0)]
    assert info == index_files.load_info(str(tmp_path / "i"))
    assert files(tmp_path / "i") == {*info.files, "index_info.json", ".lock"}
    assert faiss.read_index(info.path("index")).ntotal == 5


def test_the_same_input_gives_the_same_bytes(tmp_path):
    collection = write_embeddings(tmp_path / "e", unit_vectors(30))
    for name in "ab":
        build(directory=str(tmp_path / name), embeddings_dirs=[str(collection)])
    for file in files(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


COLLECTION = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3), st.sampled_from(["x", "y", None])),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(COLLECTION, min_size=2, max_size=3))
def test_adding_is_building_of_the_union(tmp_path_factory, collections):
    """Few ids, embeddings and classes, so many rows are there already or differ."""
    root = tmp_path_factory.mktemp("law")
    vectors = unit_vectors(4)
    directories = []
    for number, images in enumerate(collections):
        some = vectors[np.array([pick for _, pick, _ in images], int)]
        given = {"source_id": [image[0] for image in images]}
        given["class_name"] = [image[2] for image in images]
        directories.append(str(write_embeddings(root / f"e{number}", some, **given)))
    first: dict[str, tuple] = {}
    counts, left_out = [], []
    for images in collections:
        here = [0, 0, 0]
        for name, pick, class_name in images:
            there = first.setdefault(name, ())
            if not there:
                first[name] = (pick, class_name)
                here[0] += 1
            elif there == (pick, class_name):
                here[1] += 1
            else:
                here[2] += 1
                left_out.append(name)
        counts.append(tuple(here))

    whole = build(directory=str(root / "whole"), embeddings_dirs=directories)
    parts = [build(directory=str(root / "parts"), embeddings_dirs=directories[:1])]
    parts += [
        add(directory=str(root / "parts"), embeddings_dirs=[each]) for each in directories[1:]
    ]
    rows, embeddings = held(root / "whole")
    assert (rows, embeddings) == held(root / "parts")
    assert [(row["source_id"], row["class"]) for row in rows] == [
        (name, class_name) for name, (_, class_name) in first.items()
    ]
    assert embeddings == [vectors[pick].tolist() for pick, _ in first.values()]
    assert numbers(whole) == [numbers(info)[-1] for info in parts] == counts
    lines = Path(whole.path("left_out")).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["source_id"] for line in lines] == left_out


def test_what_is_left_out_is_said(tmp_path, capsys):
    first = write_embeddings(tmp_path / "e1", unit_vectors(4))
    other = unit_vectors(4)
    other[2] = other[0]
    second = write_embeddings(
        tmp_path / "e2", other, source_id=["00000.jpg", "n", "00002.jpg", "m"]
    )
    build(directory=str(tmp_path / "i"), embeddings_dirs=[str(first)])
    info = add(directory=str(tmp_path / "i"), embeddings_dirs=[str(second)])
    assert numbers(info)[1] == (2, 1, 1)
    text = "\n".join(summary(info, 1))
    assert "4 images, 2 added, 1 there already, 1 left out" in text
    [line] = Path(info.path("left_out")).read_text().splitlines()
    assert info.path("left_out") in text
    assert json.loads(line)["source_id"] == "00002.jpg"
    # If nothing is new, nothing is written.
    before = files(tmp_path / "i")
    again = add(directory=str(tmp_path / "i"), embeddings_dirs=[str(first)])
    assert numbers(again)[2] == (0, 4, 0)
    assert files(tmp_path / "i") == before


def error(call, **arguments) -> str:
    with pytest.raises(UsageError) as raised:
        call(**{name: str(v) if isinstance(v, Path) else v for name, v in arguments.items()})
    return str(raised.value)


def test_refusals(tmp_path):
    one = write_embeddings(tmp_path / "e1", unit_vectors(4))
    other = str(write_embeddings(tmp_path / "e2", unit_vectors(4), model="b" * 64))
    narrow = str(write_embeddings(tmp_path / "e3", unit_vectors(4, 4)))
    long = str(write_embeddings(tmp_path / "e4", 2 * unit_vectors(4)))
    index = tmp_path / "i"
    assert "of model bbbbbbbbbbbb" in error(
        build, directory=index, embeddings_dirs=[str(one), other]
    )
    assert "D = 4" in error(build, directory=index, embeddings_dirs=[str(one), narrow])
    assert "unit length" in error(build, directory=index, embeddings_dirs=[long])
    assert "no such folder" in error(add, directory=tmp_path / "no", embeddings_dirs=[str(one)])
    assert not (tmp_path / "no").exists()
    assert "not finished" in error(add, directory=index, embeddings_dirs=[str(one)])
    assert "not divisible" not in error(
        build, directory=index, embeddings_dirs=[str(one)], kind="ivfpq"
    )
    build(directory=str(index), embeddings_dirs=[str(one)])
    before = held(index)
    assert "of model bbbbbbbbbbbb" in error(add, directory=index, embeddings_dirs=[other])
    assert "--overwrite" in error(build, directory=index, embeddings_dirs=[str(one)])
    (one / "embeddings_info.json").unlink()
    assert "not finished" in error(add, directory=index, embeddings_dirs=[str(one)])
    with index_files.writing(str(index)):
        done = command("add", f"--index_dir={index}", f"--embeddings={narrow}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: index {index}: another process is writing there\n"
    assert held(index) == before


def test_overwriting_replaces_whatever_is_there(tmp_path):
    one = str(write_embeddings(tmp_path / "e1", unit_vectors(4)))
    two = str(write_embeddings(tmp_path / "e2", unit_vectors(3, 4, seed=1), model="b" * 64))
    build(directory=str(tmp_path / "i"), embeddings_dirs=[one])
    info = build(directory=str(tmp_path / "i"), embeddings_dirs=[two], overwrite=True)
    assert (info.model, len(held(tmp_path / "i")[0])) == ("b" * 64, 3)
    assert files(tmp_path / "i") == {*info.files, "index_info.json", ".lock"}


def test_nothing_but_an_index_is_replaced(tmp_path):
    one = str(write_embeddings(tmp_path / "e1", unit_vectors(4)))
    names = ["embeddings-00000.parquet", "index-00001.html", "rows-00000.csv"]
    for folder_name in ("i", "foreign"):
        (tmp_path / folder_name).mkdir()
        for name in names:
            (tmp_path / folder_name / name).write_text("not ours")
    foreign = tmp_path / "foreign"
    assert "not empty, and no index" in error(build, directory=foreign, embeddings_dirs=[one])
    assert files(foreign) == {*names}
    # Other files beside an index stay; the leftovers of a killed build are removed.
    for name in names:
        (tmp_path / "i" / name).rename(tmp_path / name)
    left = {f"index-00000.faiss.{'0a' * 16}.partial", "rows-00000.parquet", ".lock"}
    for name in left:
        (tmp_path / "i" / name).write_text("")
    build(directory=str(tmp_path / "i"), embeddings_dirs=[one])
    for name in names:
        (tmp_path / name).rename(tmp_path / "i" / name)
    info = build(directory=str(tmp_path / "i"), embeddings_dirs=[one], overwrite=True)
    assert files(tmp_path / "i") == {*info.files, *names, "index_info.json", ".lock"}


def test_killed_at_any_moment(tmp_path):
    one = str(write_embeddings(tmp_path / "e1", unit_vectors(4)))
    two = str(write_embeddings(tmp_path / "e2", unit_vectors(3, seed=1), source_id=["x", "y", "z"]))
    build(directory=str(tmp_path / "i"), embeddings_dirs=[one])
    old = held(tmp_path / "i")
    killing = [sys.executable, "-m", "tests.fixtures.search.killed", str(tmp_path / "i"), two]
    killed = int(subprocess.check_output([*killing, str(tmp_path / "copies")], cwd=ROOT))
    new = held(tmp_path / "copies" / str(killed))
    assert len(new[0]) == 7
    copies = [held(tmp_path / "copies" / str(access)) for access in range(killed)]
    committed = copies.index(new)
    assert committed > 5
    assert copies == [old] * committed + [new] * (killed - committed)
    # Adding again repairs what the killed process left behind.
    for access in range(committed):
        copy = tmp_path / "copies" / str(access)
        info = add(directory=str(copy), embeddings_dirs=[two])
        assert held(copy) == new
        assert files(copy) == {*info.files, "index_info.json", ".lock"}


@pytest.mark.parametrize("name", ["index-00000.faiss", "rows-00000.parquet"])
def test_damage_is_noticed(tmp_path, name):
    one = write_embeddings(tmp_path / "e", unit_vectors(40))
    directory = tmp_path / "i"
    build(directory=str(directory), embeddings_dirs=[str(one)])
    path = directory / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"{path}: damaged" in error(SearchIndex.load, directory=directory)
    path.write_bytes(bytes(len(whole)))
    assert f"{path}: cannot be read" in error(SearchIndex.load, directory=directory)
    path.unlink()
    assert f"{path}: missing" in error(SearchIndex.load, directory=directory)
    info = directory / "index_info.json"
    info.write_text(info.read_text().replace('"format": 1', '"format": 2'))
    assert "format version 2" in error(SearchIndex.load, directory=directory)
    info.write_text("{}")
    assert "not written by tripletmill" in error(SearchIndex.load, directory=directory)


def test_no_images(tmp_path):
    none = str(write_embeddings(tmp_path / "e0", unit_vectors(0)))
    some = str(write_embeddings(tmp_path / "e1", unit_vectors(3)))
    build(directory=str(tmp_path / "i"), embeddings_dirs=[none])
    index = SearchIndex.load(str(tmp_path / "i"))
    assert index.nearest(unit_vectors(2)) == [[], []]
    add(directory=str(tmp_path / "i"), embeddings_dirs=[some])
    index = SearchIndex.load(str(tmp_path / "i"))
    [[nearest]] = index.nearest(unit_vectors(3)[2:], 1)
    assert (nearest.entry.source_id, nearest.distance) == ("00002.jpg", 0)
