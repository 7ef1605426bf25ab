"""The info file of a folder: present, missing, of another version, or of another program."""

import pytest

from tripletmill.errors import UsageError
from tripletmill.formats.info_file import InfoFile

FILE = InfoFile("info.json", "boxes", 3, make="pack them", again="pack again")


def loaded(directory):
    with FILE.reading(str(directory)) as content:
        FILE.require_version(str(directory), content["format"])
        return content["size"] + 1


def test_content_is_taken_apart(tmp_path):
    (tmp_path / "info.json").write_text('{"format": 3, "size": 4}')
    assert loaded(tmp_path) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "boxes {}: not finished, no info.json in it; pack them"),
        ('{"format": 2}', "boxes {}: format version 2, this is version 3; pack again"),
        ("[1", "{}/info.json: not written by tripletmill"),
        ("[1]", "{}/info.json: not written by tripletmill"),
        (
            '{"format": 3}',
            "{}/info.json: not written by tripletmill, or damaged (KeyError",
        ),
        (
            '{"format": 3, "size": "4"}',
            "{}/info.json: not written by tripletmill, or damaged (Type",
        ),
        (b"\xff\xfe{", "{}/info.json: not written by tripletmill"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, text, words):
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "info.json").write_bytes(data)
    with pytest.raises(UsageError) as raised:
        loaded(tmp_path)
    assert str(raised.value).startswith(words.format(tmp_path))


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file" / "in"):
        with pytest.raises(UsageError, match="no such folder; pack them"):
            loaded(path)
