"""Queries in a gallery, with groups; each command runs in a process."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from pipeline.preprocess.job import preprocess
from preprocessing.sources.manifests import ManifestInput
from tests.fixtures.folders import class_folder
from tests.trainer.test_main import arguments, run
from trainer.evaluation.measure import Embedded, raw_pixels
from trainer.evaluation.neighbour_sheet import nearest_places

CLASSES, IMAGES = 10, 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, str]:
    """A run, and its data set, whose last four classes have queries and a gallery."""
    folder = tmp_path_factory.mktemp("query_gallery")
    class_folder(folder / "images", classes=CLASSES, images=IMAGES)
    with open(folder / "list.csv", "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "label", "split", "session"])
        for label in range(CLASSES):
            for number in range(IMAGES):
                split = "train" if label < 6 else "query" if number < 2 else "gallery"
                # The two queries of a class have different sessions; class 9 has only one session.
                session = "" if label < 6 else "all" if label == 9 else f"{number % 2}"
                lines.writerow(
                    [f"images/class_{label:02d}/{number:02d}.png", label, split, session]
                )
    preprocess(
        input=str(folder / "list.csv"),
        output=str(folder / "data"),
        manifest=ManifestInput(group="session"),
        short_side=32,
        images_per_shard=10,
        runner=FnApiRunner(),
        options=PipelineOptions([]),
    )
    done = run(*arguments(folder / "data", folder / "run", "STEPS = 3"))
    return folder / "data", folder / "run", done.stdout


def test_query_against_gallery_is_the_default_where_there_are_both(trained):
    _, model_dir, printed = trained
    table = json.loads((model_dir / "evaluation/query-gallery.json").read_text())
    assert (table["split"], table["gallery"], table["group"]) == ("query", "gallery", "x_session")
    assert (table["num_queries"], table["num_without_match"]) == (6, 2)
    assert (table["num_gallery"], table["num_classes"]) == (16, 3)
    assert "query: 6 images of 3 classes, each a query against the 16 of gallery" in printed
    assert "images of a query's class and x_session are left out of its ranking" in printed
    assert "2 images without a match of another x_session are no queries" in printed
    metrics = [*table["results"]["trained model"]]
    assert metrics[-3:] == ["map_at_r", "r_precision", "mean_reciprocal_rank"]
    for name in metrics:
        low, high = table["intervals"]["trained model"][name]
        values = [row[name] for row in table["classes"]]
        assert min(values) <= low <= table["results"]["trained model"][name] <= high <= max(values)
    assert [row["class"] for row in table["classes"]] == ["6", "7", "8"]
    assert [row["num_queries"] for row in table["classes"]] == [2, 2, 2]
    assert re.search(r"95 % interval, from( +[01]\.\d{3}){7}\n +to( +[01]\.\d{3}){7}\n", printed)
    with Image.open(model_dir / "evaluation/query-gallery-neighbours.png") as sheet:
        assert sheet.width > 500


@pytest.mark.slow
def test_without_groups_and_within_a_split(trained, tmp_path):
    data_dir, _, _ = trained
    model_dir = shutil.copytree(trained[1], tmp_path / "run")
    run("--mode=evaluate", f"--model_dir={model_dir}", "--gin_param=evaluate.group = None")
    table = json.loads((model_dir / "evaluation/query-gallery.json").read_text())
    assert (table["num_queries"], table["num_without_match"], table["group"]) == (8, 0, None)
    within = ("--gin_param=evaluate.split = 'gallery'", "--gin_param=evaluate.group = None")
    run("--mode=evaluate", f"--model_dir={model_dir}", *within)
    table = json.loads((model_dir / "evaluation/gallery.json").read_text())
    assert (table["num_queries"], table["num_gallery"], table["gallery"]) == (16, 16, None)
    # A class has two queries, but each is of another session.
    only = ("--gin_param=evaluate.split = 'query'", "--gin_param=evaluate.gallery = 'train'")
    done = run("--mode=evaluate", f"--model_dir={model_dir}", *only, check=False)
    assert done.returncode == 2
    message = f"data_dir {data_dir}: no class of query is in train too, with another x_session"
    assert message in done.stderr


@pytest.mark.parametrize("side", [16, 40, 48, 7, 224])
def test_raw_pixels_are_means_over_areas(side):
    images = np.random.default_rng(0).integers(0, 256, [3, side, side, 3]).astype(np.uint8)
    expected = tf.image.resize(images.astype(np.float32), [16, 16], method="area")
    np.testing.assert_allclose(raw_pixels(tf.constant(images)), tf.reshape(expected, [3, -1]), 1e-4)


class Rows:
    """Stands for the images of a split."""

    def __init__(self, label: list[int], group: list[str | None]) -> None:
        self.index = self
        self.label = np.array(label)
        self._group = group

    def column(self, name: str) -> pa.Array:
        assert name == "visit"
        return pa.array(self._group)


def nearest(queries, gallery, places, num, group) -> list[list[int]]:
    found = nearest_places(queries, gallery, np.array(places), num, group)
    return [rows.tolist() for rows in found]


def test_the_neighbours_on_a_sheet_are_those_that_count():
    """Rows of a query's class and group are skipped, as in the metrics."""
    places = np.array([[0], [1], [2], [3], [4], [5], [6]], np.float32)
    of = Rows([0, 0, 0, 1, 0, 0, 1], ["a", "a", "a", "a", "b", None, "b"])
    some = Embedded(of, places, np.arange(7))
    assert nearest(some, some, [0, 5], 3, "visit") == [[3, 4, 5], [4, 6, 3]]
    assert nearest(some, some, [0], 3, None) == [[1, 2, 3]]
    # Here the neighbours come from a gallery, whose rows are those of undamaged images.
    gallery = Embedded(of, places[1:], np.arange(1, 7))
    query = Embedded(Rows([9, 0], ["a", "b"]), np.float32([[4]]), np.array([1]))
    assert nearest(query, gallery, [0], 9, "visit") == [[2, 4, 1, 5, 0]]
