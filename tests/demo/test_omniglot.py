"""Tests of the splits of Omniglot, in both folder layouts in which it is distributed."""

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from demo.omniglot import rows

ROOT = Path(__file__).parents[2]
CHARACTERS = {"images_background": 25, "images_evaluation": 4}


@pytest.mark.parametrize("separator", ["/", "__"])
def test_rows_have_labels_and_splits(tmp_path, separator):
    for part, count in CHARACTERS.items():
        for number in range(count):
            name = f"Greek{separator}character{number:02d}"
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for drawing in range(3):
                (folder / f"{drawing}.png").touch()
    drawings = rows(tmp_path)
    assert len(drawings) == len({path for path, _, _ in drawings}) == 3 * 29
    assert Counter(split for _, _, split in drawings) == {"train": 69, "val": 6, "test": 12}
    assert {label for _, label, split in drawings if split == "val"} == {
        "Greek__character09",
        "Greek__character19",
    }
    for path, label, split in drawings:
        assert Path(path).parent == tmp_path.resolve() / (
            f"images_{'evaluation' if split == 'test' else 'background'}"
        ) / label.replace("__", separator)


def test_the_command_refuses_a_folder_without_drawings_and_writes_a_manifest(tmp_path):
    command = [sys.executable, "-m", "demo.omniglot", f"--input={tmp_path}"]
    command.append(f"--output={tmp_path / 'list.csv'}")
    for part in CHARACTERS:
        (tmp_path / part).mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no .png below images_background and images_evaluation" in done.stderr
    assert not (tmp_path / "list.csv").exists()
    folder = tmp_path / "images_background/Greek/character01"
    folder.mkdir(parents=True)
    (folder / "a, b.png").touch()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 drawings" in done.stderr
    with open(tmp_path / "list.csv", newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row == {
        "path": str(folder.resolve() / "a, b.png"),
        "label": "Greek__character01",
        "split": "train",
    }
