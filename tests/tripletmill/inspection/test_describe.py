"""The output of `describe`."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures import written
from tests.fixtures.written import edit_info, write_data_set, write_lines
from tripletmill.__main__ import main
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.inspection.describe import describe, escaped

WHOLE = """\
data set photos in {folder}

split    classes  images  shards     size  a class: min  median  max
train          3      11       3  11.3 kB             3       4    4
query          2       2       1   2.0 kB             1       1    1
gallery        1       2       1   2.0 kB             2       2    2

pixels  min  median  max
height   16      16   16
width    16      17   19

images a class  classes
             1        1  ############################
        2 to 3        2  #######################################################
        4 to 7        2  #######################################################

classes
  4  train           b
  4  train           e\\nfünf
  3  train           a
  3  gallery, query  d
  1  query           c

left out: 3 files
  2  empty file
     such as a/x.png
  1  exact duplicate within class
     such as b/y.png

classes with too few images: 2 (f, g)

classes that have too few images, since some cannot be read: 1 (c)

groups of exact duplicates: 1 within class

further columns: x_camera (group)

settings
  image  quality 90, short_side 16
  name   photos
"""


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("describe") / "photos")


@pytest.fixture
def copy(data_set, tmp_path):
    return shutil.copytree(data_set, tmp_path / "photos")


def test_whole(data_set, capsys):
    assert main(["describe", str(data_set)]) == 0
    assert capsys.readouterr().out == WHOLE.format(folder=data_set)


def test_of_the_pipeline(tmp_path):
    from tests.fixtures.datasets import small_data_set  # imports Beam

    lines = list(describe(str(small_data_set(tmp_path, classes=4, images=3))))
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["train", "2", "6"],
        ["val", "1", "3"],
        ["test", "1", "3"],
    ]
    assert "left out: nothing" in lines
    assert max(map(len, lines[2:])) <= 80


def write_classes(folder, counts):
    rows = [
        {"label": label, "name": name, "split": "train", "count": count}
        for label, (name, count) in enumerate(counts.items())
    ]
    table = pa.Table.from_pylist(rows, schema=index.CLASSES_SCHEMA)
    pq.write_table(table, folder / index.CLASSES_FILE)


def test_many_classes(copy):
    write_classes(copy, {f"c{i:04d}": i for i in range(1025)})
    lines = list(describe(str(copy)))
    start = lines.index("images a class  classes")
    table = [line.split("  ") for line in lines[start + 1 : start + 13]]
    ranges = [" ".join(cells[:-2]).strip() for cells in table]
    assert ranges[:3] == ["0", "1", "2 to 3"]
    assert ranges[-2:] == ["512 to 1,023", "1,024 to 2,047"]
    bars = [len(cells[-1]) for cells in table]
    assert bars[0] == bars[1] == 1
    assert bars[-2] == max(bars) > 40
    largest, smallest = lines.index("largest classes"), lines.index("smallest classes")
    assert lines[largest + 1 : largest + 3] == ["  1,024  train  c1024", "  1,023  train  c1023"]
    assert lines[smallest + 1 : smallest + 3] == ["  0  train  c0000", "  1  train  c0001"]


def test_names_of_any_kind(copy):
    names = ["\x1b[2Jred", "a\tb\r\nc", "長" * 60, "x" * 200, "\u202eright to left", "ordinary"]
    write_classes(copy, dict.fromkeys(names, 3))
    reasons = [f"reason {'long ' * 30}", "\x07"]
    rows = [{"source_id": n, "class": n, "reason": r} for n in names for r in reasons]
    write_lines(copy / index.REJECTED_FILE, rows)
    edit_info(copy, lambda content, extra: extra.update(classes_left_out=names * 3))
    text = "\n".join(list(describe(str(copy)))[1:])
    assert text.replace("\n", "").isprintable()
    for name in ("\\x1b[2Jred", "a\\tb\\r\\nc", "\\u202eright to left", "長" * 60):
        assert name in text
    assert "classes with too few images: 18 (" in text
    listed = [line for line in text.splitlines() if ", " not in line]
    assert len(listed) > 30
    assert max(map(len, listed)) == 80


def test_nothing_in_it(copy):
    """A data set that is empty as far as this command looks."""
    write_classes(copy, {})
    write_lines(copy / index.REJECTED_FILE, [])

    def empty(content, extra):
        extra.update(num_rejected=0, duplicates={}, settings={}, columns=[], classes_left_out=[])

    edit_info(copy, empty)
    for split in written.SHARDS:
        path = copy / index.index_file("photos", split)
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    lines = list(describe(str(copy)))
    assert lines[3].split()[-3:] == ["-", "-", "-"]
    assert "height    -       -    -" in lines
    assert "images a class  classes" in lines
    assert lines[-1] == "settings"
    assert "left out: nothing" in lines


@pytest.mark.parametrize("file", ["classes.parquet", "photos-query.index.parquet"])
def test_damaged(copy, file):
    (copy / file).write_bytes(b"no")
    with pytest.raises(UsageError, match=f"{file}: cannot be read"):
        list(describe(str(copy)))


@pytest.mark.parametrize("line", ["{", "[]", '{"reason": "x"}', '{"reason": [], "source_id": ""}'])
def test_damaged_rejects(copy, line, capsys):
    (copy / index.REJECTED_FILE).write_text(line)
    assert main(["describe", str(copy)]) == 2
    assert "rejected.jsonl: not written by tripletmill" in capsys.readouterr().err


def test_missing_file(copy, capsys):
    (copy / index.REJECTED_FILE).unlink()
    assert main(["describe", str(copy)]) == 2
    path = copy / index.REJECTED_FILE
    assert capsys.readouterr().err == f"error: {path}: No such file or directory\n"


def test_escaped():
    assert escaped("grün 長 é") == "grün 長 é"
    assert escaped("\udc80\x00\u2028") == "\\udc80\\x00\\u2028"
