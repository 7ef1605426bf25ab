"""Runs the commands of the README in a copy of the project."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.folders import class_folder
from tests.fixtures.project import copy_project

ROOT = Path(__file__).parents[1]
VENV = Path(sys.prefix)
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
FIRST = ("make demo", "make test")
# Runs in the tests are shorter than those of the README, with the same configuration.
STEPS = 20


def in_project(command: list[str], project: Path) -> str:
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    # `make test` may have started this test, and its settings must not reach the inner make.
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "ARGS"):
        environment.pop(name, None)
    if command[0] == "make":
        command = [*command, f"VENV={VENV}", f"--old-file={VENV / '.installed-cpu'}"]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("clone") / "tripletmill")


def test_one_command_sets_up_and_one_tests():
    assert {*FIRST} <= {*COMMANDS}


@pytest.mark.slow
def test_make_demo(project):
    if not (VENV / ".installed-cpu").exists():
        pytest.skip("not in the environment that `make setup` makes")
    out = in_project(["make", "demo", f"ARGS=--gin_param=STEPS={STEPS + 20}"], project)
    results = json.loads((project / "runs/demo/evaluation/test.json").read_text())["results"]
    scores = {name: metrics["map_at_r"] for name, metrics in results.items()}
    assert scores["trained model"] > scores["raw pixels"] + 0.1
    assert scores["trained model"] > scores["model before training"] + 0.1
    for name in scores:
        assert name in out
    for line in out.splitlines()[-2:]:
        assert (project / line.removeprefix("wrote ")).is_file()


@pytest.mark.slow
def test_own_images(project):
    """Runs all other commands of the README, in their order, on a folder of images."""
    class_folder(project / "photos", classes=60, images=8)
    for line in [command for command in COMMANDS if command not in FIRST]:
        command = shlex.split(line)
        if command[0] == "make" and not (VENV / ".installed-cpu").exists():
            pytest.skip("not in the environment that `make setup` makes")
        if "--mode=evaluate" not in command and "trainer.main" in command:
            command.append(f"--gin_param=STEPS={STEPS}")
            command.append(f"--gin_param=WarmupCosine.warmup_steps={STEPS // 2}")
        in_project(command, project)
    assert (project / "runs/photos/evaluation/test-neighbours.png").is_file()
    assert (project / "runs/margin/evaluation/test.json").is_file()


def test_links_in_the_docs_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), (page.name, target)


def make(*words: str) -> str:
    command = ["make", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "target", ["train", "evaluate", "export", "embed", "index", "search", "report", "serve"]
)
def test_make_hands_names_on_whatever_is_in_them(target):
    model, data = "runs/it's my $HOME, so", 'dat"a `x'
    # In make a dollar sign is written twice.
    variables = [f"MODEL={model.replace('$', '$$')}", f"DATA={data}", f"IMAGES={data}"]
    shown = make("--dry-run", "VENV=a", "--old-file=setup", target, *variables)
    [command] = [line for line in shown.replace("\\\n", " ").splitlines() if " -m " in line]
    words = shlex.split(command)
    of = {
        "train": {f"--model_dir={model}", f"--data_dir={data}"},
        "evaluate": {f"--model_dir={model}", f"--data_dir={data}"},
        "export": {f"--model_dir={model}"},
        "embed": {f"--model_dir={model}", f"--data_dir={data}", f"--output={model}/embeddings"},
        "index": {f"--embeddings={model}/embeddings", f"--index_dir={model}/index"},
        "search": {f"--model_dir={model}", f"--index_dir={model}/index", data},
        "report": {f"--model_dir={model}", f"--data_dir={data}"},
        "serve": {f"--model_dir={model}", f"--index_dir={model}/index", f"--data_dir={data}"},
    }
    assert of[target] <= {*words}, words


def test_make_help_lists_every_target():
    help_text = make("help")
    for target in (
        *("setup", "demo", "preprocess", "train", "evaluate", "export", "embed", "index", "search"),
        *("report", "serve"),
        *("test", "lint", "format", "bench", "clean"),
    ):
        assert f"make {target} " in help_text
