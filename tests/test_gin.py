"""The runs in gin/: each says its command and what to expect, and names only what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNS = sorted(
    path.name
    for path in (ROOT / "gin").glob("*.gin")
    if path.name != "base.gin" and not path.stem.endswith("_preprocess")
)
PARTS = ("data", "models", "losses", "schedules")
# Of another kind than a run of its own: it takes any data set.
TEMPLATES = {"small_conv.gin"}
# Parses each configuration in a process of its own, and says what its run would be.
PARSE = """
import os, sys
from argparse import Namespace
from trainer import config
import gin
run = {"data_dir": "DATA", "model_dir": "RUN", "mode": "train", "gin_param": []}
for file in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        config.load(Namespace(gin_file=[file], **run))
        plan = gin.query_parameter("BatchPlan.classes_per_batch")
        steps = gin.query_parameter("%STEPS")
        gin.query_parameter("train.triplets"), gin.query_parameter("build_model.backbone")
        print(os.path.basename(file), plan, steps, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{file} does not parse")
"""


def header(name: str) -> str:
    lines = (ROOT / "gin" / name).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory) -> Path:
    """Where folders are named as those of gin/, as they may well be in a user's project."""
    folder = tmp_path_factory.mktemp("project")
    for name in PARTS:
        (folder / name).mkdir()
    return folder


def test_the_runs_there_are():
    assert RUNS == [
        "demo.gin",
        "eight_gpus_resnet50.gin",
        "grocery_lite0.gin",
        "omniglot_small_conv.gin",
        "one_gpu_resnet50.gin",
        "small_conv.gin",
        "tpu_v4_8_resnet50.gin",
    ]


def test_every_run_parses_from_anywhere(foreign_folder):
    own = foreign_folder / "own.gin"
    own.write_text("include 'small_conv.gin'\nSTEPS = 700\n")
    files = [*(str(ROOT / "gin" / name) for name in RUNS), str(own)]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *files],
        cwd=foreign_folder,
        env={"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _, _ in said] == [*RUNS, "own.gin"]
    assert all(int(plan) >= 16 and int(steps) >= 150 for _, plan, steps in said)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_says_its_command_and_what_to_expect(name):
    text = header(name)
    assert f"  python -m trainer.main --gin_file=gin/{name}" in text
    if re.search(r"gpu|tpu", name):
        assert "Not run: no " in text
    elif name not in TEMPLATES:
        assert re.search(r"\d+ min", text)
        assert re.search(r"test MAP@R \.\d{3}, Recall@1 \.\d{3}", text)


@pytest.mark.parametrize("part", PARTS)
def test_parts_stand_for_themselves(part):
    """A part includes nothing, so a run file names all that it is made of."""
    files = list((ROOT / "gin" / part).glob("*.gin"))
    assert files
    for file in files:
        assert "include" not in file.read_text(encoding="utf-8")
        assert any(
            f"include '{part}/{file.name}'" in run.read_text()
            for run in file.parents[1].glob("*.gin")
        )
