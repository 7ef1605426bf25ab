"""Files appear whole or not at all."""

import pytest

from preprocessing.storage import atomic_file, write_file


def test_whole(tmp_path):
    write_file(str(tmp_path / "a"), b"old")
    write_file(str(tmp_path / "a"), b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_not_at_all(tmp_path):
    write_file(str(tmp_path / "a"), b"old")

    def stop_in_the_middle() -> None:
        with atomic_file(str(tmp_path / "a")) as file:
            file.write(b"half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
