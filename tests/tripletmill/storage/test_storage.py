"""A file or folder is written whole or not at all."""

from pathlib import Path

import pytest

from tripletmill.errors import UsageError
from tripletmill.storage.storage import atomic_file, atomic_folder, require_new_file, write_file


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


def test_where_a_folder_lies(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(str(tmp_path / "a"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    for folder in (str(tmp_path / "a"), str(tmp_path / "new") + "/"):
        with pytest.raises(UsageError, match=r"output .*: a folder; name a file"):
            require_new_file(folder, "output")
    require_new_file(str(tmp_path / "new"), "output")


def fill(folder: str, content: bytes) -> None:
    with atomic_folder(folder) as made:
        write_file(f"{made}/{content.decode()}", content)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_is_replaced_whole(tmp_path):
    fill(str(tmp_path / "a"), b"old")
    fill(str(tmp_path / "a"), b"new")
    assert content(tmp_path) == {"a/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_or_nothing(tmp_path):
    fill(str(tmp_path / "a"), b"old")

    def stop_in_the_middle() -> None:
        with atomic_folder(str(tmp_path / "a")) as made:
            write_file(f"{made}/new", b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert content(tmp_path) == {"a/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("killed", ["while it was filled", "between the renames", "at the end"])
def test_a_folder_after_a_kill(tmp_path, killed):
    """Leftovers are removed, and the old folder stays until the new one is complete."""
    old, made, former = (tmp_path / name for name in ("a", "a.partial", "a.former"))
    for folder in (old, made) if killed == "while it was filled" else (former, made):
        folder.mkdir()
        (folder / "file").write_bytes(b"old")
    if killed == "at the end":
        made.rename(old)
    with atomic_folder(str(old)) as folder:
        assert (old / "file").is_file()
        write_file(f"{folder}/new", b"new")
    assert content(tmp_path) == {"a/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
