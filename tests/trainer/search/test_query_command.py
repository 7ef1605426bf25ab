"""The query command: image files and source ids in; tables, JSON lines and sheets out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import embedded
from tests.fixtures.embedded import COLOUR_MODEL, unit_vectors, write_embeddings
from tests.fixtures.images import pixels, save
from tests.fixtures.project import ROOT
from tests.fixtures.search.commands import command
from trainer.search.__main__ import main
from trainer.search.build import build
from tripletmill.images import ImageSettings, canonical_jpeg

SETTINGS = ImageSettings(short_side=32)
COLOURS = {
    "red/1.png": (200, 10, 10),
    "red/2.png": (190, 20, 10),
    "green/1.png": (10, 200, 20),
    "blue/1.png": (0, 10, 210),
    "blue/2.png": (20, 10, 200),
}


def png(colour: tuple[int, int, int]) -> bytes:
    return save(Image.new("RGB", (40, 32), colour), "PNG")


def embedding(name: str) -> np.ndarray:
    """The embedding of the record that the image would have in a data set."""
    return embedded.mean_colour(pixels(canonical_jpeg(png(COLOURS[name]), SETTINGS).jpeg))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of images, a model, and an index of the images' embeddings by this model."""
    root = tmp_path_factory.mktemp("query")
    for name, colour in COLOURS.items():
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(png(colour))
    embedded.colour_model(root / "run")
    collection = write_embeddings(
        root / "e",
        np.stack([embedding(name) for name in COLOURS]),
        source_id=[*COLOURS],
        class_name=[name.partition("/")[0] for name in COLOURS],
        split=["test", "train", None, "test", "train"],
        model=COLOUR_MODEL,
    )
    build(directory=str(root / "index"), embeddings_dirs=[str(collection)])
    return root


@pytest.fixture
def ask(made, capsys, monkeypatch):
    """Runs a query in this process, from the common folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)

    def run(*flags: str, index: str = "index") -> tuple[int, str, str]:
        code = main(["query", f"--index_dir={index}", *flags])
        return code, *capsys.readouterr()

    return run


def test_table_by_source_id(ask):
    code, out, err = ask("--source_id=red/1.png", "--source_id=green/1.png", "--neighbours=2")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["red/1.png", "(red,", "test)"]
    assert lines[1][0] == "1"
    assert lines[1][2:] == ["red", "train", "red/2.png"]
    one, two = embedding("red/1.png"), embedding("red/2.png")
    assert float(lines[1][1]) == pytest.approx(float(((one - two) ** 2).sum()), abs=5e-5)
    assert lines[3] == ["green/1.png", "(green)"]
    assert len(lines) == 6


def test_json_lines_of_files_and_folders(ask, made, tmp_path):
    (tmp_path / "f" / ".hidden").mkdir(parents=True)
    (tmp_path / "f" / ".hidden" / "x.png").write_bytes(b"")
    (tmp_path / "f" / "z.png").write_bytes(png((12, 190, 20)))
    (tmp_path / "f" / "notes.txt").write_text("of no use")
    alone = tmp_path / "navy.png"
    alone.write_bytes(png((0, 10, 205)))
    flags = ["--model_dir=run", "--format=jsonl", "--neighbours=3"]
    code, out, err = ask(str(tmp_path / "f"), str(alone), "gone.png", *flags)
    assert code == 0
    answers = {each["query"]: each for each in map(json.loads, out.splitlines())}
    assert [*answers] == [
        *(str(tmp_path / "f" / name) for name in ("notes.txt", "z.png")),
        str(alone),
        "gone.png",
    ]
    bad = f"{tmp_path}/f/notes.txt"
    assert answers[bad]["error"].startswith("not a JPEG")
    assert "No such file" in answers["gone.png"]["error"]
    assert f"{bad}: not a JPEG" in err
    assert err.endswith("2 of 4 could not be answered\n")
    [nearest, *_] = answers[f"{tmp_path}/f/z.png"]["neighbours"]
    expected = {"source_id": "green/1.png", "class": "green", "label": 5, "split": None}
    assert {**expected, "distance": nearest["distance"]} == nearest
    assert [e["class"] for e in answers[str(alone)]["neighbours"][:2]] == ["blue", "blue"]


def test_an_image_of_the_collection_finds_itself(ask):
    """An image file is embedded from its canonical JPEG, as in the collection."""
    flags = ["--model_dir=run/export", "--format=jsonl", "--neighbours=1"]
    for name in COLOURS:
        _, out, _ = ask(f"images/{name}", *flags)
        [nearest] = json.loads(out)["neighbours"]
        assert nearest["source_id"] == name
        assert nearest["distance"] < 1e-9


def test_filters(ask):
    flags = ["--format=jsonl", "--source_id=blue/1.png"]
    names = lambda out: [e["source_id"] for e in json.loads(out)["neighbours"]]  # noqa: E731
    assert names(ask(*flags, "--class=red")[1]) == ["red/2.png", "red/1.png"]
    assert names(ask(*flags, "--split=test")[1]) == ["red/1.png"]
    assert names(ask(*flags, "--class=green", "--split=test")[1]) == []
    assert "no other image" in ask(*flags[1:], "--class=green", "--split=test")[1]


def test_sheet_from_a_folder(ask, made, tmp_path):
    sheet = tmp_path / "sheet.png"
    flags = ["--format=sheet", f"--output={sheet}", "--images=images"]
    code, out, err = ask("--source_id=red/1.png", "--source_id=nobody", *flags)
    assert (code, out) == (0, f"wrote {sheet}\n")
    assert err == "nobody: not in index index\n1 of 2 could not be answered\n"
    with Image.open(sheet) as image:
        colours = {colour for _, colour in image.getcolors(1 << 24)}
        assert all(
            any(np.abs(np.subtract(c, of)).max() < 4 for c in colours) for of in COLOURS.values()
        )
        height = image.height
    code, out, err = ask("images/red", "--model_dir=run", *flags)
    assert (code, err) == (0, "")
    with Image.open(sheet) as image:
        assert image.height > height
    os.rename(made / "images/green/1.png", made / "images/green/2.png")
    try:
        assert "no picture of 1: green/1.png" in ask("--source_id=red/1.png", *flags)[2]
    finally:
        os.rename(made / "images/green/2.png", made / "images/green/1.png")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "either image files, or --source_id"),
        (["x.png", "--source_id=red/1.png"], "either image files, or --source_id"),
        (["images/red/1.png"], "--model_dir=RUN is missing"),
        (["images/red/1.png", "--model_dir=index"], "no model_card.json in it"),
        (["images/red/1.png", "--model_dir=no"], "no such folder"),
        (["gone.png", "--model_dir=run"], "gone.png: cannot be read: No such file"),
        (["e", "--model_dir=run"], "none of 3 queries could be answered"),
        (["--source_id=nobody"], "nobody: not in index index"),
        (["--source_id=red/1.png", "--class=rad"], "there is 'red'"),
        (["--source_id=red/1.png", "--format=sheet"], "--output=FILE.png is missing"),
        (["--source_id=red/1.png", "--format=sheet", "--output=x.png"], "either --data_dir=DIR or"),
        (
            ["--source_id=a"] * 201 + ["--format=sheet", "--output=x", "--images=."],
            "holds 200 queries",
        ),
        (
            ["--source_id=a", "--neighbours=51", "--format=sheet", "--output=x", "--images=."],
            "50 neighbours of each",
        ),
        (["--source_id=a", "--format=sheet", "--output=e", "--images=."], "output e: a folder"),
        (["--source_id=red/1.png", "--output=x.png"], "are for --format=sheet"),
        (["--source_id=red/1.png", "--format=jsonl", "--data_dir=d"], "are for --format=sheet"),
    ],
)
def test_refusals(ask, flags, words):
    code, out, err = ask(*flags)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


def test_a_folder_that_cannot_be_read_is_named(ask, made, monkeypatch):
    scandir, closed = os.scandir, os.path.join("images", "red")

    def refused(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    code, out, err = ask("images", "--model_dir=run")
    assert (code, out, err) == (2, "", f"error: image {closed}: Permission denied\n")


def test_another_model_is_refused(ask, made):
    other = write_embeddings(made / "other", unit_vectors(4, 3))
    build(directory=str(made / "other_index"), embeddings_dirs=[str(other)], overwrite=True)
    code, out, err = ask("images/red/1.png", "--model_dir=run", index="other_index")
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: model run/export: is cccccccccccc, but index other_index is of model"
    )


def test_commands_in_processes(made):
    """Building, and a query by id, do not load TensorFlow; a closed pipe is no error."""
    flags = [f"--embeddings={made / 'e'}", f"--index_dir={made / 'again'}"]
    done = command("build", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 images, D = 3, flat (exact)" in done.stdout
    done = command("add", *flags)
    assert "0 added, 5 there already" in done.stdout
    code = "import sys; from trainer.search.__main__ import main; main(sys.argv[1:]); "
    code += "print({'tensorflow', 'keras', 'apache_beam'} & {*sys.modules})"
    query = ["query", f"--index_dir={made / 'again'}", "--source_id=red/1.png"]
    done = subprocess.run(
        [sys.executable, "-c", code, *query], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    # Without PYTHONUNBUFFERED, the output is written only at the end.
    done = command(*query, stdout=writing, env={**os.environ, "PYTHONUNBUFFERED": ""})
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_image_command(made):
    """FAISS and TensorFlow work in one process and print nothing."""
    flags = [f"--index_dir={made / 'index'}", f"--model_dir={made / 'run'}", str(made / "images")]
    done = command("query", *flags, "--neighbours=1", "--format=jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["neighbours"][0]["source_id"] for each in answers] == sorted(COLOURS)
