"""Tests of the demo images, on a few characters and font families."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from demo import draw
from demo.draw import CHARACTERS, FAMILIES, class_name, draw_face, find_faces
from tripletmill.errors import UsageError

FEW = {
    family: FAMILIES[family] for family in ("Amatic SC", "DejaVu Sans", "Lato", "Red Hat Display")
}
TEXT = "AagjMWÅ@.|∫ω"


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, draw.Summary]:
    output = tmp_path_factory.mktemp("demo") / "images"
    summary = draw.draw(output, TEXT, FEW, min_faces=5)
    assert summary is not None
    return output, summary


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}


def _face(name: str) -> Path:
    return next(path for path in find_faces() if path.name == name)


def test_the_whole_set_is_large_enough() -> None:
    faces = find_faces()
    assert len(faces) >= 40
    assert len(set(faces.values())) == len(FAMILIES)
    assert len({path.stem.lower() for path in faces}) == len(faces)
    assert len({class_name(character).lower() for character in CHARACTERS}) == len(CHARACTERS)
    assert len(CHARACTERS) >= 120


def test_every_typeface_is_in_the_list_of_licences() -> None:
    rows = Path(draw.__file__).with_name("LICENSES.md").read_text().splitlines()
    for family, (package, _) in FAMILIES.items():
        assert any(row.startswith(f"| {package} |") and family in row for row in rows), family


def test_class_names_are_readable() -> None:
    assert class_name("A") == "U+0041_latin-capital-letter-a"
    assert class_name("/") == "U+002F_solidus"


def test_layout_and_counts(small_set: tuple[Path, draw.Summary]) -> None:
    output, summary = small_set
    files = _contents(output)
    assert summary.images == len(files)
    assert summary.classes == len({Path(name).parent for name in files})
    assert "U+0041_latin-capital-letter-a/lato-bolditalic.png" in files
    assert sorted(path.name for path in output.parent.iterdir()) == ["images", "images.json"]


def test_rare_characters_are_left_out(small_set: tuple[Path, draw.Summary]) -> None:
    output, summary = small_set
    assert summary.left_out == ["ω"]  # here, only the four faces of DejaVu Sans have it
    assert not (output / class_name("ω")).exists()


def test_images_are_black_on_white_within_a_white_border(
    small_set: tuple[Path, draw.Summary],
) -> None:
    for path in small_set[0].glob("*/*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
            pixels = np.asarray(image).copy()
        assert pixels.min() < 128, path
        pixels[1:-1, 1:-1] = 255
        assert pixels.min() == 255, path


def test_capitals_have_one_height_and_position_in_all_faces(
    small_set: tuple[Path, draw.Summary],
) -> None:
    for path in (small_set[0] / class_name("M")).iterdir():
        with Image.open(path) as image:
            rows, columns = np.nonzero(np.asarray(image) < 255)
        assert abs(rows.min() - (draw.BASELINE - draw.CAP_HEIGHT)) <= 2, path
        assert abs(rows.max() + 1 - draw.BASELINE) <= 2, path
        assert abs(columns.min() - (63 - columns.max())) <= 2, path


def test_drawing_is_deterministic(small_set: tuple[Path, draw.Summary], tmp_path: Path) -> None:
    draw.draw(tmp_path / "images", TEXT, FEW, min_faces=5)
    assert _contents(tmp_path / "images") == _contents(small_set[0])
    assert (tmp_path / "images.json").read_bytes() == small_set[0].with_suffix(".json").read_bytes()


def test_every_character_fits_in_its_largest_faces() -> None:
    for name in ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "Caladea-Bold.ttf"):
        _, skipped = draw_face(_face(name), CHARACTERS)
        assert set(skipped) <= {"not in the face"}, name


def test_missing_glyphs_are_skipped_and_not_drawn_as_boxes() -> None:
    images, skipped = draw_face(_face("Lato-Bold.ttf"), "AΨ\ue123")
    assert list(images) == ["A"]
    assert skipped == {"not in the face": 2}


def test_a_mapped_box_is_skipped(tmp_path: Path) -> None:
    with TTFont(_face("Lato-Bold.ttf")) as font:
        for name in "AB":
            font["glyf"][name] = font["glyf"][".notdef"]
            font["hmtx"][name] = font["hmtx"][".notdef"]
        font.save(tmp_path / "boxes.ttf")
    images, skipped = draw_face(tmp_path / "boxes.ttf", "ABC")
    assert list(images) == ["C"]
    assert skipped == {"a box for a missing glyph": 2}


def test_two_characters_drawn_alike_are_drawn_once() -> None:
    images, skipped = draw_face(_face("Manrope-Bold.ttf"), "Ilvν")
    assert list(images) == ["I", "v"]
    assert skipped == {"drawn like another character of the face": 2}
    assert list(draw_face(_face("DejaVuSerif.ttf"), "IlvνDÐO0")[0]) == list("IlvνDÐO0")


def test_faces_that_draw_a_character_alike_give_one_image(tmp_path: Path) -> None:
    family = {"DejaVu Sans": FAMILIES["DejaVu Sans"]}
    summary = draw.draw(tmp_path / "images", "A•", family, min_faces=2)
    assert summary is not None
    assert summary.images == 6
    assert summary.skipped == {"drawn like this in another face": 2}


def test_small_capitals_do_not_count_as_lower_case() -> None:
    images, skipped = draw_face(_face("AmaticSC-Bold.ttf"), "Aa1", small_capitals=True)
    assert list(images) == ["A", "1"]
    assert skipped == {"lower case as small capital": 1}


def test_a_second_run_does_nothing(small_set: tuple[Path, draw.Summary]) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_set[0].parent.rglob("*")}
    assert draw.draw(small_set[0], TEXT, FEW, min_faces=5) is None
    assert {path: path.stat().st_mtime_ns for path in small_set[0].parent.rglob("*")} == before


def test_a_different_or_damaged_set_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "images"
    lato = {"Lato": FAMILIES["Lato"]}
    draw.draw(output, "AB", lato, min_faces=1)
    with pytest.raises(UsageError, match="exists and is not this set"):
        draw.draw(output, "ABC", lato, min_faces=1)
    (output / class_name("A") / "lato-bold.png").unlink()
    with pytest.raises(UsageError, match="exists and is not this set"):
        draw.draw(output, "AB", lato, min_faces=1)


def test_an_interrupted_run_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "images"
    lato = {"Lato": FAMILIES["Lato"]}
    with monkeypatch.context() as patch:
        patch.setattr(draw, "draw_face", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            draw.draw(output, "AB", lato, min_faces=1)
    assert not output.exists()
    draw.draw(output, "A", lato, min_faces=1)
    assert [path.name for path in output.iterdir()] == [class_name("A")]


def test_the_error_names_a_missing_package() -> None:
    message = "font-nowhere is missing: run `make setup`, or pip install font-nowhere"
    with pytest.raises(UsageError, match=message):
        find_faces({"Nowhere": ("font-nowhere", "*.ttf")})


def test_an_interrupted_command_leaves_no_set_and_says_how_to_go_on(tmp_path: Path) -> None:
    output = tmp_path / "images"
    command = [sys.executable, "-m", "demo.draw", f"--output={output}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "images.partial").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "\ninterrupted; run the same command again to draw the images\n"
    assert not output.exists()


def test_the_command_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "demo.draw", f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
