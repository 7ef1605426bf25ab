"""Every kind of damage is found and named with its place."""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import images, written
from tests.fixtures.cloud.emulators import go_emulator
from tests.fixtures.written import SHARDS, Place, edit_info, edit_rows, write_data_set
from tripletmill.__main__ import main
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.formats.records import FRAMING_BYTES, RecordWriter, read_record
from tripletmill.inspection.problem import Problem
from tripletmill.inspection.verify import verify
from tripletmill.storage import storage

ROOT = Path(__file__).parents[3]
SHARD = "photos-train.tfrecord-00001-of-00003"
INDEX = "photos-train.index.parquet"
INFO = "dataset_info.json"
FIRST_ROW = 5  # the first row of SHARD in the index
SPOILT = Place("train", 1, 3)  # this is row 8 of the index
SOURCE_ID = "e\nfünf/01.png"
NO_ROW, NO_RECORD = "record of ", "no record starts here"
NOT_SORTED = "not sorted by shard and offset, or a class in several pieces"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("verify") / "photos")


@pytest.fixture
def copy(data_set, tmp_path):
    return shutil.copytree(data_set, tmp_path / "photos")


def found(folder: Path, *, file: str = "") -> list[Problem]:
    """All problems, or one file's."""
    problems = list(verify(str(folder), jobs=2))
    return [problem for problem in problems if problem.file == (file or problem.file)]


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / INDEX).to_pylist()


def test_all_right(data_set):
    assert found(data_set) == []


def test_of_the_pipeline(tmp_path):
    from tests.fixtures.datasets import small_data_set  # imports Beam

    assert found(small_data_set(tmp_path, classes=4, images=3)) == []


# Damage to the shards.


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("byte", [100, -1, 0, 7, 8])
@pytest.mark.parametrize("row", [FIRST_ROW, 7, 10])
def test_flipped_byte(copy, row, byte):
    record = rows(copy)[row]
    end = record["length"] + FRAMING_BYTES
    flip(copy / SHARD, record["offset"] + byte % end)
    where = f"offset {record['offset']}, row {row}, {record['source_id']}"
    message = "the checksum of its payload is wrong"
    if byte in (0, 7, 8):
        message = "the checksum of its length is wrong, or no record starts here"
    assert found(copy) == [Problem(SHARD, where, message)]


def test_two_damaged_records(copy):
    for row in (6, 9):
        flip(copy / SHARD, rows(copy)[row]["offset"] + 20)
    assert [problem.where.split(", ")[1] for problem in found(copy)] == ["row 6", "row 9"]


@pytest.mark.parametrize("missing", [1, 300, "record", "all"])
def test_cut_off(copy, missing):
    data = (copy / SHARD).read_bytes()
    lost = {1: 10, 300: 10, "record": 10, "all": FIRST_ROW}[missing]
    record = rows(copy)[lost]
    is_between = isinstance(missing, str)
    missing = len(data) - record["offset"] if is_between else missing
    (copy / SHARD).write_bytes(data[: len(data) - missing])
    message = "no record starts here" if is_between else "the file ends within it"
    problems = found(copy)
    for row, problem in enumerate(problems[: 11 - lost], lost):
        record = rows(copy)[row]
        where = f"offset {record['offset']}, row {row}, {record['source_id']}"
        assert problem == Problem(SHARD, where, message)
    assert {problem.where for problem in problems[11 - lost :]} <= {"", "split train"}


def test_more_behind_the_last_record(copy):
    size = (copy / SHARD).stat().st_size
    with open(copy / SHARD, "ab") as file:
        file.write(b"more")
    message = "the file ends within it"
    assert found(copy, file=SHARD) == [Problem(SHARD, f"offset {size}", message)]


def test_record_without_a_row(copy):
    size = (copy / SHARD).stat().st_size
    with open(copy / SHARD, "r+b") as file:
        payload = read_record(file, 0)
        file.seek(size)
        RecordWriter(file).write(payload)
    without_row, checksum = found(copy, file=SHARD)
    message = "record of b/02.png without a row in the index"
    assert without_row == Problem(SHARD, f"offset {size}", message)
    assert checksum.message.startswith("its CRC-32C is ")


def test_missing_shard(copy):
    (copy / SHARD).unlink()
    assert found(copy, file=SHARD) == [Problem(SHARD, "", "missing")]


def test_shard_that_cannot_be_read(copy, monkeypatch):
    def open_read(path: str) -> BinaryIO:
        if path.endswith(SHARD):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return open(path, "rb")

    monkeypatch.setattr(storage, "open_read", open_read)
    message = "cannot be read: Input/output error"
    assert found(copy) == [Problem(SHARD, "", message)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_in_a_shard_is_found(data_set, tmp_path_factory, data):
    shards = sorted(path.name for path in data_set.glob("*.tfrecord-*") if path.stat().st_size)
    shard = data.draw(st.sampled_from(shards))
    offset = data.draw(st.integers(0, (data_set / shard).stat().st_size - 1))
    copy = shutil.copytree(data_set, tmp_path_factory.mktemp("flip") / "photos")
    flip(copy / shard, offset, data.draw(st.integers(1, 255)))
    [problem] = found(copy)
    assert problem.file == shard
    assert "checksum" in problem.message
    shutil.rmtree(copy.parent)


# Records that are complete but wrong.


def change(**values: Any) -> written.Spoil:
    def spoil(place: Place, features: dict[str, Any]) -> dict[str, Any]:
        changes = {f"image/{name.replace('__', '/')}": value for name, value in values.items()}
        return {**features, **changes} if place == SPOILT else features

    return spoil


def other_image(data: bytes, **values: Any) -> written.Spoil:
    return change(encoded=data, key__sha256=hashlib.sha256(data).digest(), **values)


def other_payload(payload: bytes) -> written.Spoil:
    return lambda place, features: payload if place == SPOILT else features


def other_features(change: Callable[[dict[str, Any]], object]) -> written.Spoil:
    def spoil(place: Place, features: dict[str, Any]) -> dict[str, Any] | bytes:
        changed = dict(features)
        change(changed)
        return written.encode_example(changed) if place == SPOILT else features

    return spoil


JPEG = written.jpeg(1)[0]  # has the width of the image that it replaces
GREY = images.encode("L", (16, 16), "JPEG")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(key__sha256=b"\0" * 32), "image/key/sha256 is not the hash"),
        (change(encoded=JPEG), "is not the hash of the image"),
        (other_image(b"\xff\xd8\xff\xe0"), "the image does not"),
        (other_image(b""), "the image does not decode"),
        (other_image(JPEG[:-200]), "Truncated"),
        (other_image(JPEG[:-20]), "truncated"),
        (other_image(images.encode("RGB")), "the image does not"),
        (other_image(GREY, height=16, width=16), "the image is L, not RGB"),
        (change(width=15), "the image is 16 x 17, in the record 16 x 15"),
        (change(height=17), "the image is 16 x 17, in the record 17 x 17"),
        (change(format="png"), "image/format is 'png'"),
        (other_payload(b"no example"), "not a serialized tf.train.Example"),
        (
            other_features(lambda features: features.pop("image/format")),
            "of a wrong type: image/format",
        ),
        (
            other_features(lambda features: features.update(x=1)),
            "missing, unknown or of a wrong type: x",
        ),
        (
            change(class__text="five"),
            "class 'five' here, label 4 is 'e\\nfünf' in classes.parquet",
        ),
    ],
)
def test_spoilt_record(tmp_path, spoil, message):
    folder = write_data_set(tmp_path / "photos", spoil=spoil)
    [problem] = found(folder)
    assert problem.file == SHARD
    assert message in problem.message
    offset = rows(folder)[8]["offset"]
    assert problem.where == f"offset {offset}, row 8, {SOURCE_ID}"


def test_wrong_label_in_the_shard(tmp_path):
    folder = write_data_set(tmp_path / "photos", spoil=change(class__label=1))
    edit_rows(folder / INDEX, set_cell("label", 4))
    problems = found(folder, file=SHARD)
    assert problems[0].message == "label is 4 in the index, 1 in the shard"


def test_class_in_pieces(tmp_path):
    def spoil(place: Place, features: dict[str, Any]) -> dict[str, Any]:
        b = {"image/class/label": 1, "image/class/text": "b"}
        return {**features, **b} if place == SPOILT else features

    folder = write_data_set(tmp_path / "photos", spoil=spoil)
    for row, label in ((0, 1), (1, 4)):
        edit_rows(
            folder / index.CLASSES_FILE,
            lambda classes, label=label, row=row: [
                c.update(count=c["count"] + (1 if row == 0 else -1))
                for c in classes
                if c["label"] == label
            ],
        )
    assert found(folder) == [Problem(INDEX, "row 8", NOT_SORTED)]


def test_source_id_twice(tmp_path):
    def spoil(place: Place, features: dict[str, Any]) -> dict[str, Any]:
        there = place == Place("query", 0, 1)
        return {**features, "image/source_id": "a/01.png"} if there else features

    folder = write_data_set(tmp_path / "photos", spoil=spoil)
    message = "another row has this source id, too"
    assert found(folder) == [
        Problem("photos-query.index.parquet", "row 1, a/01.png", message),
        Problem(INDEX, "row 1, a/01.png", message),
    ]


# Damage to the index.


def set_cell(column: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[8].update({column: value})


@pytest.mark.parametrize(
    ("edit", "messages"),
    [
        (set_cell("sha256", b"\0" * 32), ["sha256 is 0000000000000000... in the index, "]),
        (set_cell("label", 1), ["label is 1 in the index, 4 in the shard"]),
        (set_cell("height", 17), ["height is 17 in the index, 16 in the shard"]),
        (set_cell("width", 15), ["width is 15 in the index, 17 in the shard"]),
        (set_cell("length", 2**31 - 1), ["length is 2147483647 in the index, "]),
        (set_cell("offset", 1), [NO_ROW, NO_RECORD]),
        (set_cell("offset", 2**40), [NO_ROW, NO_RECORD]),
        (set_cell("offset", -1), [NO_ROW, NO_RECORD]),
        (set_cell("source_id", "a/00.png"), ["source_id is a/00.png in the index, e\nfünf/01"]),
        (lambda rows: rows.pop(8), [NO_ROW]),
    ],
)
def test_wrong_row(copy, edit, messages):
    offset = rows(copy)[8]["offset"]
    edit_rows(copy / INDEX, edit)
    problems = found(copy, file=SHARD)
    for problem, message in zip(problems, messages, strict=True):
        assert problem.message.startswith(message)
    assert problems[0].where.startswith(f"offset {offset}")


def test_what_a_wrong_row_says(copy):
    edit_rows(copy / INDEX, set_cell("label", 99))
    [problem] = found(copy, file=SHARD)
    assert problem.message == "label is 99 in the index, 4 in the shard"
    assert problem.where.endswith(f", row 8, {SOURCE_ID}")
    of_classes = Problem(index.CLASSES_FILE, "split train, label 99", f"0 images, but 1 in {INDEX}")
    assert of_classes in found(copy)


@pytest.mark.parametrize(
    ("edit", "row", "message"),
    [
        (lambda rows: rows.insert(6, rows.pop(9)), 7, NOT_SORTED),
        (lambda rows: rows.insert(8, rows[8]), 9, NOT_SORTED),
        (set_cell("shard", 0), 8, NOT_SORTED),
        (set_cell("shard", 3), 8, "a shard that is not 0 to 2"),
        (set_cell("shard", None), 8, "an empty cell"),
        (set_cell("label", None), 8, "an empty cell"),
        (set_cell("sha256", None), 8, "an empty cell"),
        (set_cell("source_id", None), 8, "an empty cell"),
    ],
)
def test_rows_that_are_not_sorted_or_empty(copy, edit, row, message):
    edit_rows(copy / INDEX, edit)
    assert Problem(INDEX, f"row {row}", message) in found(copy)
    if row == 8:
        [without_row] = found(copy, file=SHARD)
        assert without_row.message == f"{NO_ROW}{SOURCE_ID} without a row in the index"


def rename(folder: Path, file: str, edit: Callable[[Any], Any]) -> None:
    path = folder / file
    pq.write_table(edit(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.drop_columns(["x_camera"]), "shard int32, offset int64"),
        (lambda t: t.append_column("x_a", t["x_camera"]), "shard int32, offset"),
        (lambda t: t.drop_columns(["label"]), "shard int32, offset int64, length"),
        (lambda t: t.set_column(0, "shard", t["shard"].cast("int64")), "shard int64, offset int64"),
        (lambda t: t.select(["x_camera", *t.column_names[:-1]]), "x_camera string, shard int32"),
    ],
)
def test_columns(copy, edit, message):
    rename(copy, INDEX, edit)
    [problem] = found(copy)
    assert problem.file == INDEX
    assert problem.message.startswith(f"its columns are {message}")
    assert problem.message.endswith("source_sha256 fixed_size_binary[32], x_camera string")


def test_damage_behind_a_damaged_index(copy):
    (copy / INDEX).write_bytes(b"PAR1 no more")
    flip(copy / SHARD, 100)
    first, second = found(copy)
    assert (first.file, second.file) == (INDEX, SHARD)
    assert first.message.startswith("cannot be read: ")
    assert second == Problem(SHARD, "offset 0", "the checksum of its payload is wrong")


def test_never_a_traceback_on_a_damaged_index(copy):
    """Some bytes of an index are stated nowhere else, so their damage is not always found."""
    whole = (copy / INDEX).read_bytes()
    for offset in range(0, len(whole), 41):
        flip(copy / INDEX, offset, 0x5A)
        found(copy)
        (copy / INDEX).write_bytes(whole)


# The small files.


FILES = [INDEX, index.CLASSES_FILE, index.FEATURES_FILE, index.REJECTED_FILE, index.DUPLICATES_FILE]


@pytest.mark.parametrize("file", FILES)
def test_missing_or_unreadable_file(copy, file):
    (copy / file).write_bytes(b"no")
    assert found(copy)[0].file == file
    if file.endswith(("parquet", index.FEATURES_FILE)):
        [problem] = found(copy)
        assert problem.message.startswith("cannot be read: ")
    (copy / file).unlink()
    assert found(copy) == [Problem(file, "", "missing")]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c[0].update(count=4), "4 images, but 3 in photos-tr"),
        (lambda c: c[0].update(name="A"), "class 'a' here, label 0 is 'A'"),
        (lambda c: c.pop(0), "0 images, but 3 in photos-train.index"),
        (lambda c: c.append(c[0]), "contradicts an earlier row: label 0, 'a', train"),
        (lambda c: c[3].update(name="D"), "contradicts an earlier row: label 3, 'd', query"),
        (lambda c: c[0].update(count=None), "an empty cell"),
        (lambda c: c[0].update(split="dev"), "an empty cell, or an unknown split: "),
        (lambda c: c[0].update(name="b"), "contradicts an earlier row: label 1, 'b', train"),
    ],
)
def test_classes(copy, edit, message):
    edit_rows(copy / index.CLASSES_FILE, edit)
    assert found(copy)[0].message.startswith(message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, e: e["num_images"].update(train=10), "num_images is 10, but 11 found"),
        (lambda c, e: e["num_classes"].update(train=4), "num_classes is 4, but 3 found"),
        (
            lambda c, e: c["splits"][2]["shardLengths"].__setitem__(1, "7"),
            "shardLengths of shard 1 is 7, but 6 found",
        ),
        (
            lambda c, e: c["splits"][2]["shardLengths"].pop(),
            "shardLengths has 2 entries for 3 shards",
        ),
        (
            lambda c, e: e["shard_crc32c"]["train"].pop(0),
            "shard_crc32c has 2 entries for 3 shards",
        ),
        (lambda c, e: c["splits"][2].update(numBytes="1"), "numBytes is 1, but 11,318 found"),
        (lambda c, e: e.update(group="x_item"), "x_item is none of the columns"),
    ],
)
def test_description(copy, edit, message):
    edit_info(copy, edit)
    where = "group" if "x_item" in message else "split train"
    assert found(copy) == [Problem(INFO, where, message)]


def test_checksum_of_a_file(copy):
    edit_info(copy, lambda c, e: e["shard_crc32c"]["train"].__setitem__(1, 7))
    [problem] = found(copy)
    assert problem.file == SHARD
    assert problem.message.endswith("in dataset_info.json 7")


def test_data_set_without_what_came_later(copy):
    later = ["shard_crc32c", "columns", "group", "duplicates"]
    later += ["classes_left_out", "classes_fallen_below"]
    edit_info(copy, lambda content, extra: [extra.pop(name) for name in later])
    info = index.load_info(str(copy))
    assert [getattr(info, name) for name in later] == [{}, (), None, {}, (), ()]
    for split in SHARDS:
        rename(copy, index.index_file("photos", split), lambda t: t.drop_columns(["x_camera"]))
    (copy / index.DUPLICATES_FILE).unlink()
    assert found(copy) == []


def test_features_file(copy):
    content = json.loads((copy / index.FEATURES_FILE).read_text())
    del content["content"]["features"]["image/width"]
    (copy / index.FEATURES_FILE).write_text(json.dumps(content))
    message = "other features than the records have"
    assert found(copy) == [Problem(index.FEATURES_FILE, "", message)]


def test_lists(copy):
    path = copy / index.REJECTED_FILE
    whole = path.read_text()
    path.write_text(whole[: whole.index("\n") + 1])
    assert [p.message for p in found(copy)] == [f"lines: 1, but 3 in {INFO}"]
    path.write_text(whole.replace('"reason": "empty file"', '"why": 1', 1))
    message = "no JSON object with source_id, class, reason"
    assert found(copy)[0] == Problem(path.name, "line 1", message)
    path.write_text(whole.replace("}", "", 1))
    assert found(copy)[0].where == "line 1"
    path.write_text(whole)
    edit_info(copy, lambda content, extra: extra["duplicates"].update({"across splits": 2}))
    [problem] = found(copy)
    message = f"across splits: 0, but 2 in {INFO}"
    assert (problem.file, problem.message) == (index.DUPLICATES_FILE, message)


def test_remarks(copy, capsys):
    names = [
        "photos-train.tfrecord-00003-of-00004",
        "photos-train.tfrecord-00000-of-00003.0a1b.partial",
        "photos-dev.index.parquet",
        "classes.parquet.0a1b.partial",
    ]
    for name in [*names, "notes.txt", "other-train.tfrecord-00000-of-00001"]:
        (copy / name).write_bytes(b"")
    (copy / ".work").mkdir()
    problems = found(copy)
    assert all(problem.is_remark for problem in problems)
    assert [problem.file for problem in problems] == [*sorted(names), ".work"]
    assert main(["verify", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "remark: .work: left over; a finished data set does not need it\n" in out
    assert out.endswith("15 images in 5 shards: all right\n")


def test_nothing_to_verify(tmp_path):
    with pytest.raises(UsageError, match=r"not finished, no dataset_info\.json in it"):
        next(verify(str(tmp_path)))


# The command.


def test_command(copy, capsys):
    assert main(["verify", str(copy), "--jobs=1"]) == 0
    assert capsys.readouterr().out == "15 images in 5 shards: all right\n"
    flip(copy / SHARD, rows(copy)[8]["offset"] + 50)
    assert main(["verify", str(copy)]) == 1
    offset = rows(copy)[8]["offset"]
    assert capsys.readouterr().out == (
        f"{SHARD}: offset {offset}, row 8, e\\nfünf/01.png:"
        " the checksum of its payload is wrong\n1 problem\n"
    )


def test_many_in_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SHARDS, "query", [[("c", 25), ("d", 1)]])

    def spoil(place: Place, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "image/format": "png"} if place.split == "query" else features

    folder = write_data_set(tmp_path / "photos", spoil=spoil)
    (folder / index.FEATURES_FILE).unlink()
    assert main(["verify", str(folder)]) == 1
    *lines, more, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert more == "photos-query.tfrecord-00000-of-00001: 6 more problems"
    assert last == "27 problems"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: verify|describe"),
        (["verify"], "required: DIR"),
        (["verify", "x", "y"], "unrecognized arguments: y"),
        (["verify", "x", "--jobs=0"], "--jobs: '0': whole numbers, 1 or more"),
        (["describe", "x", "--jobs=1"], "unrecognized arguments: --jobs=1"),
        (["verify", "nowhere"], "data_dir nowhere: no such folder"),
        (["describe", "nowhere"], "data_dir nowhere: no such folder"),
        (["verify", "s3://x/y"], "data_dir s3://x/y: local paths and gs:// only"),
    ],
)
def test_mistakes(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", err)


def test_interrupted(tmp_path, monkeypatch):
    """After Ctrl+C the threads end with the record that they are checking."""
    monkeypatch.setitem(SHARDS, "gallery", [[("d", 40)]])
    folder = write_data_set(tmp_path / "photos")
    code = f"""
import time
from PIL.JpegImagePlugin import JpegImageFile
from tripletmill import __main__

def slow(image):
    print("started", flush=True)
    time.sleep(0.5)

JpegImageFile.load = slow
exit(__main__.main(["verify", {str(folder)!r}, "--jobs=2"]))
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert err == "interrupted\n"
    assert out.count("started") < 12  # there are 15
    assert process.returncode == 130


def test_starts_small(data_set):
    code = (
        "import sys; from tripletmill.__main__ import main;"
        f"code = main(['verify', {str(data_set)!r}]);"
        "print({'tensorflow', 'tensorflow_datasets', 'apache_beam'} & {*sys.modules});"
        "exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "15 images in 5 shards: all right\nset()\n", done.stderr


def test_in_a_bucket(data_set):
    command = [sys.executable, "-m", "tripletmill"]
    with go_emulator() as emulator:
        emulator.make_bucket("bucket")
        for path in data_set.iterdir():
            emulator.put("bucket", f"sets/photos/{path.name}", path.read_bytes())
        run = functools.partial(
            subprocess.run,
            cwd=ROOT,
            env={**os.environ, **emulator.environment()},
            capture_output=True,
            text=True,
        )
        done = run([*command, "verify", "gs://bucket/sets/photos"])
        assert done.stdout == "15 images in 5 shards: all right\n", done.stderr
        done = run([*command, "describe", "gs://bucket/sets/photos/"])
        assert done.stdout.startswith("data set photos in gs://bucket/sets/photos"), done.stderr
        assert "empty file" in done.stdout
        code = "from tripletmill.formats.index import load_index as load;"
        code += "i = load('gs://bucket/sets/photos', 'train')"
        done = run(
            [sys.executable, "-c", f"{code}; print(len(i), i.shards[1], i.class_names()[3])"]
        )
        assert done.stdout == f"11 gs://bucket/sets/photos/{SHARD} d\n", done.stderr
        done = run([*command, "verify", "gs://bucket/sets"])
        assert done.returncode == 2
        assert done.stderr.startswith("error: data_dir gs://bucket/sets: not finished, no")
