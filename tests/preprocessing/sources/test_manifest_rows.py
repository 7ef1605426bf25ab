"""The rows of a manifest, with the line and the offset at which each row ends."""

import io

import pytest

from preprocessing.sources.manifest_rows import Row, read_header, read_rows
from tripletmill.errors import UsageError


def test_csv():
    file = io.BytesIO(b'\xef\xbb\xbfa,b\n1,2\n\n"x\ny"\n')
    header = read_header("list.CSV", file)
    assert header == ("a", "b")
    first, second = read_rows("list.CSV", file, header, line=2)
    assert first == Row({"a": "1", "b": "2"}, line=2, end=11)
    assert second == Row({"a": "x\ny", "b": None}, line=5, end=18)
    file.seek(first.end)
    assert list(read_rows("list.CSV", file, header, line=first.line + 1)) == [second]


def test_jsonl():
    file = io.BytesIO(b'{"a": 1.5, "b": [true]}\n\n{"a": null, "c": "\xc3\xbc"}')
    assert read_header("list.jsonl", file) == ()
    assert list(read_rows("list.jsonl", file, (), line=1)) == [
        Row({"a": "1.5", "b": "[true]"}, line=1, end=24),
        Row({"a": None, "c": "ü"}, line=3, end=47),
    ]


def test_no_rows():
    assert list(read_rows("list.csv", io.BytesIO(), ("a",), line=2)) == []
    assert list(read_rows("list.jsonl", io.BytesIO(), (), line=1)) == []
    with pytest.raises(UsageError, match=r"^input list.csv: empty; expected a header"):
        read_header("list.csv", io.BytesIO())
