"""Manifests as CSV and JSONL."""

import csv
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.sources import manifests
from preprocessing.sources.inputs import InputOptions, open_source
from preprocessing.sources.manifests import ManifestInput
from preprocessing.sources.references import ImageRef, Rejected
from tripletmill.errors import UsageError


def listed(table, *, labelled=True, **options):
    source = open_source(
        str(table), InputOptions(manifest=ManifestInput(**options)), labelled=labelled
    )
    return [file for part in source.parts() for file in source.list_part(part)]


def summary(files):
    images = [(f.source_id, f.class_name, f.split) for f in files if isinstance(f, ImageRef)]
    return images, [(f.source_id, f.reason) for f in files if isinstance(f, Rejected)]


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_csv(tmp_path):
    touch(tmp_path / "images/1.png")
    touch(tmp_path / "images/two, too.png")
    table = tmp_path / "labels.csv"
    table.write_text(
        '\ufeffpath,label,split,note\nimages/1.png, cat ,train,x\n"./images/two, too.png",dog,,\n'
        "gone.png,cat,test,\n",
    )
    files = listed(table)
    assert summary(files) == (
        [("images/1.png", "cat", "train"), ("images/two, too.png", "dog", None)],
        [("gone.png", "cannot be read: No such file or directory")],
    )
    assert [f.extra for f in files if isinstance(f, ImageRef)] == [("x",), ("",)]


def test_jsonl(tmp_path):
    touch(tmp_path / "1.png")
    touch(tmp_path / "2.png")
    touch(tmp_path / "3.png")
    rows = [
        {"path": "1.png", "label": 7, "x": [1, "ä"]},
        {"path": str(tmp_path / "2.png"), "label": "b", "y": None, "x": True},
        {"path": "3.png", "label": "b", "y": 2.5},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "list.JSONL").write_text(text)  # no newline at the end
    source = open_source(str(tmp_path / "list.JSONL"))
    assert tuple(source.columns) == ("x", "y")
    files = listed(tmp_path / "list.JSONL")
    found = [(f.source_id, f.class_name, f.extra) for f in files]
    assert found == [
        ("1.png", "7", ('[1, "ä"]', None)),
        ("2.png", "b", ("true", None)),
        ("3.png", "b", (None, "2.5")),
    ]


def test_columns_by_name(tmp_path):
    touch(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("camera,file,id,part,path\n3,1.png,cat,test,x\n")
    options = {"path": "file", "label": "id", "split": "part", "group": "camera"}
    [ref] = listed(tmp_path / "list.csv", **options)
    assert (ref.class_name, ref.split, ref.extra) == ("cat", "test", ("3", "x"))
    source = open_source(
        str(tmp_path / "list.csv"), InputOptions(manifest=ManifestInput(**options))
    )
    assert (source.columns, source.group) == (("camera", "path"), "camera")
    with pytest.raises(UsageError, match="no column 'view', only camera, file, id, part, path"):
        listed(tmp_path / "list.csv", **{**options, "group": "view"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; expected a header"),
        (b"path,class\n1.png,cat\n", "no column 'label', only path, class"),
        (b"path,label,path\n1.png,cat,x\n", "has 'path' twice"),
        (b"path,label\n", "no rows"),
        (b"path,label\n,cat\n", "line 2: no path"),
        (b"path,label\n1.png\n", "line 2: no label for 1.png"),
        (b"path,label\n1.png,cat,x\n", "line 2: 3 values for 2 columns"),
        (b'path,label\n"1.png,cat\n', "line 2: unexpected end"),
        (b"path,label\n1.png,cat\n\n./1.png,dog\n", "line 4: 1.png is already in line 2"),
        (b"path,label\n\xff\xfe,cat\n", "line 2: not UTF-8"),
        (
            b"path,label\n1.png,cat\n2\0.png,cat\n",
            "line 3: 'path' has characters that are not text",
        ),
    ],
)
def test_wrong_csv(tmp_path, content, message):
    touch(tmp_path / "1.png")
    touch(tmp_path / "labels.csv", content)
    with pytest.raises(UsageError, match=message):
        listed(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b'{"path": "1.png"}', "no column 'label', only path"),
        (b'{"path": "1.png", "label": "a"}\n{"path": 3', "line 2: Expecting"),
        (b'{"path": "1.png", "label": "a"}\n["b"]', "line 2: not a JSON object"),
        (
            b'{"path": "1.png", "label": "dog\\ud83d"}',
            "line 1: 'label' has characters that are not",
        ),
        (b'{"path": "1.png", "label": "a", "\\ud83d": 1}', "line 1: .*characters that are not"),
        (b'{"path": "1.png", "label": "a"}\n{"path": "2.png"}', "line 2: no label for 2.png"),
    ],
)
def test_wrong_jsonl(tmp_path, content, message):
    touch(tmp_path / "labels.jsonl", content)
    with pytest.raises(UsageError, match=message):
        listed(tmp_path / "labels.jsonl")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(texts, st.sampled_from(["a", "b\nc", ' "d'])), min_size=1, max_size=30),
    rows_a_part=st.integers(1, 7),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
def test_parts_give_every_row_once(tmp_path, monkeypatch, rows, rows_a_part, suffix):
    monkeypatch.setattr(manifests, "ROWS_A_PART", rows_a_part)
    path = tmp_path / f"list.{suffix}"
    names = [f"{i}.png" for i in range(len(rows))]
    with open(path, "w", newline="", encoding="utf-8") as file:
        if suffix == "csv":
            writer = csv.writer(file)
            writer.writerow(["path", "label", "note"])
            writer.writerows([n, label, note] for n, (note, label) in zip(names, rows, strict=True))
        else:
            for name, (note, label) in zip(names, rows, strict=True):
                file.write(json.dumps({"path": name, "label": label, "note": note}) + "\n")
    for name in names:
        (tmp_path / name).touch()
    source = open_source(str(path))
    parts = list(source.parts())
    assert len(parts) == -(-len(rows) // rows_a_part)
    files = [file for part in parts for file in source.list_part(part)]
    assert [(f.source_id, f.class_name, f.extra) for f in files] == [
        (name, label.strip(), (note,)) for name, (note, label) in zip(names, rows, strict=True)
    ]


def test_a_name_that_no_file_can_have(tmp_path):
    """Such a name, for example a file's whole content, is left out like a missing file."""
    table = tmp_path / "labels.csv"
    table.write_text(f"path,label\n{'x' * 300},cat\n")
    [rejected] = listed(table)
    assert rejected.reason == "cannot be read: File name too long"


def test_a_manifest_that_changes_while_a_job_waits(tmp_path):
    """The parts are positions in the manifest; in another one they would be other rows or none."""
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n1.png,cat\n")
    source = open_source(str(table))
    [part] = source.parts()
    alone = pickle.loads(pickle.dumps(source.without_parts()))
    assert len(list(alone.list_part(part))) == 1
    table.write_text("path,label\n2.png,cat\n3.png,cat\n")
    with pytest.raises(UsageError, match=r"labels.csv: has changed since the job was started"):
        list(alone.list_part(part))


@pytest.mark.parametrize("column", [True, False])
def test_images_that_need_no_class(tmp_path, column):
    for name in ("1.png", "2.png"):
        touch(tmp_path / name)
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n1.png,cat\n2.png,\n" if column else "path\n1.png\n2.png\n")
    images, rejected = summary(listed(table, labelled=False))
    assert images == [("1.png", "cat" if column else "", None), ("2.png", "", None)]
    assert rejected == []
    with pytest.raises(UsageError, match=r"line 3: no label for 2" if column else "no column 'lab"):
        listed(table)
    with pytest.raises(UsageError, match="no column 'file'"):
        listed(table, labelled=False, path="file")
