"""A run with a report: a small data set with planted problems, embedded by a tiny model."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.fixtures import embedding_jobs, jobs
from tests.fixtures.datasets import make_data_set
from tests.fixtures.exported import export_model
from tests.fixtures.folders import class_folder
from tripletmill.formats.embeddings import Embeddings, load_embeddings

# The names of this class and of this image are HTML.
MARKUP_CLASS = "<b>&amp;\"x'"
MARKUP_IMAGE = "<img src=x onerror=alert(1)>.png"
WRONG = "class_02/sits-in-06.png"  # the picture shows class 06
COPIED, COPY = "class_01/00.png", "class_05/copy.png"  # a copy except for one pixel
CLASSES = 8

HISTORY = [
    {"step": 10, "kind": "train", "loss": 0.5, "active": 0.9},
    {"step": 20, "kind": "train", "loss": 0.25, "active": 0.4},
    {"step": 20, "kind": "val", "recall_at_1": 0.75, "map_at_r": 0.5},
]
EVALUATION = {
    "split": "test",
    "step": 7,
    "num_classes": 3,
    "num_queries": 18,
    "results": {
        "raw pixels": {"recall_at_1": 0.125, "map_at_r": 0.0625, "r_precision": None},
        "trained model": {"recall_at_1": 0.5, "map_at_r": 0.3125},
    },
    "intervals": {"raw pixels": {"recall_at_1": [0.111, 0.222], "map_at_r": None}},
}


@dataclasses.dataclass(frozen=True)
class Reported:
    """A run and the report that the real command made of it.

    Attributes:
      run: the folder of the run.
      data: the data set of the run.
      path: the path of the page.
      printed: the output of the command.
      embeddings: the folder of the embeddings that the report describes.
    """

    run: Path
    data: Path
    path: Path
    printed: str
    embeddings: Embeddings

    @property
    def html(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def command(self, *more: str) -> list[str]:
        return [f"--model_dir={self.run}", f"--data_dir={self.data}", *more]


@pytest.fixture(scope="session")
def reported(tmp_path_factory) -> Reported:
    folder = tmp_path_factory.mktemp("report")
    images = class_folder(folder / "images", classes=CLASSES, images=6)
    (images / "class_06/05.png").rename(images / WRONG)
    with Image.open(images / COPIED) as copy:
        copy.putpixel((0, 0), (0, 0, 0))
        copy.save(images / COPY)
    (images / "class_03").rename(images / MARKUP_CLASS)
    (images / MARKUP_CLASS / "00.png").rename(images / MARKUP_CLASS / MARKUP_IMAGE)
    data = make_data_set(folder, cycle=("test", "test", "train", "val"))
    run = folder / "run"
    export_model(run / "export")
    embedding_jobs.run(run, run / "embeddings", data=data)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    (run / "evaluation").mkdir()
    # The run names no data set that it was trained on.
    name = json.loads((data / "dataset_info.json").read_text())["name"]
    (run / f"evaluation/{name}-test.json").write_text(json.dumps(EVALUATION))
    done = jobs.command(f"--model_dir={run}", f"--data_dir={data}", module="trainer.report")
    assert done.returncode == 0, done.stderr
    embeddings = load_embeddings(str(run / "embeddings"))
    return Reported(run, data, run / "report.html", done.stdout, embeddings)
