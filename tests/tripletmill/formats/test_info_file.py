"""The info file of a folder: present, missing, of another version, or of another program."""

import pytest

from tripletmill.errors import UsageError
from tripletmill.formats.info_file import InfoFile

FILE = InfoFile("info.json", "boxes", 3, make="pack them", again="pack again")


def loaded(directory):
    with FILE.reading(str(directory)) as content:
        FILE.require_version(str(directory), content["format"])
        return content["size"] + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1", "not written by tripletmill"),
        ('{"format": 3}', "not written by tripletmill, or damaged (KeyError"),
        ('{"format": 3, "size": "4"}', "not written by tripletmill, or damaged (Type"),
        (b"\xff\xfe{", "not written by tripletmill"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, text, words):
    (tmp_path / "info.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as raised:
        loaded(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/info.json: {words}")


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file" / "in"):
        with pytest.raises(UsageError, match="no such folder; pack them"):
            loaded(path)
