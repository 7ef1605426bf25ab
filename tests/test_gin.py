"""The run files in gin/, and what the project says about its gin parameters.

Each run file must parse from any folder, and its header must say which command starts the run and
what to expect. A gin parameter that a message or a page names must exist.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNS = sorted(
    path.name
    for path in (ROOT / "gin").glob("*.gin")
    if path.name != "base.gin" and not path.stem.endswith("_preprocess")
)
PARTS = ("data", "models", "losses", "schedules")
# A template takes any data set, so its header cannot say what results to expect.
TEMPLATES = {"small_conv.gin"}
# Parses each configuration in a child process and prints the file's name, the number of classes in
# a batch and the number of steps.
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
# Runs a program as a user does, with a binding that is wrong, so that the program ends as soon as
# it has registered its configurables. Then prints them: for each name, the parameters and methods.
REGISTERED = """
import inspect, json, runpy, sys
import gin

program = sys.argv.pop(1)
try:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
except SystemExit:
    pass

def names(configurable):
    functions = [configurable]
    if inspect.isclass(configurable):
        # A class with **kwargs hands them on to the class that it derives from.
        classes = [base for base in inspect.getmro(configurable) if "__init__" in vars(base)]
        functions = [vars(base)["__init__"] for base in classes]
        yield from (name for name, _ in inspect.getmembers(configurable, inspect.isfunction))
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        yield from (parameter.name for parameter in parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break

registered = [entry for _, entry in gin.config._REGISTRY.items()]
print(json.dumps({entry.name: [*names(entry.wrapped)] for entry in registered}))
"""
PROGRAMS = ("trainer.main", "pipeline.main", "pipeline.embed")
SHIPPED = ("tripletmill", "preprocessing", "pipeline", "trainer", "demo")
# A file such as export.md, or a call in an example, is no parameter.
NO_PARAMETER = r"(?!\w|\()(?<!\.md)(?<!\.gin)(?<!\.py)"


def header(name: str) -> str:
    lines = (ROOT / "gin" / name).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory) -> Path:
    """A user's project whose folders have the same names as those in gin/."""
    folder = tmp_path_factory.mktemp("project")
    for name in PARTS:
        (folder / name).mkdir()
    return folder


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
    """A part includes no other file, so a run file names all the parts that it consists of."""
    files = list((ROOT / "gin" / part).glob("*.gin"))
    assert files
    for file in files:
        assert "include" not in file.read_text(encoding="utf-8")
        assert any(
            f"include '{part}/{file.name}'" in run.read_text()
            for run in file.parents[1].glob("*.gin")
        )


@pytest.fixture(scope="module")
def configurables() -> dict[str, set[str]]:
    """The parameters and methods of every configurable that a program registers."""
    known: dict[str, set[str]] = {}
    for program in PROGRAMS:
        flags = ["--gin_param=there.is.no = 'such parameter'"]
        if program == "trainer.main":
            flags.append(f"--gin_file={ROOT / 'gin/base.gin'}")
        done = subprocess.run(
            [sys.executable, "-c", REGISTERED, program, *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "gin: No configurable matching" in done.stderr, done.stderr
        for name, parameters in json.loads(done.stdout.splitlines()[-1]).items():
            known.setdefault(name, set()).update(parameters)
    assert {"train", "preprocess", "embed", "BatchPlan", "FolderInput", "AdamW"} <= known.keys()
    return known


def texts() -> Iterator[tuple[str, str]]:
    """Where each text stands, and the text: strings of the shipped code, pages and gin files."""
    for path in (path for package in SHIPPED for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "gin").rglob("*.gin")]
    for path in pages:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def named_parameters(text: str, configurables: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The pairs of a configurable and a name that a text writes as CONFIGURABLE.NAME."""
    names = "|".join(sorted(configurables, key=len, reverse=True))
    return re.findall(rf"(?<![\w./-])({names})\.([a-z_]\w*){NO_PARAMETER}", text)


def test_gin_parameters_that_are_named_exist(configurables):
    named = [
        (place, configurable, name)
        for place, text in texts()
        for configurable, name in named_parameters(text, configurables)
    ]
    assert len(named) > 200  # so the pattern still finds them
    assert [each for each in named if each[2] not in configurables[each[1]]] == []


def test_a_gin_parameter_that_does_not_exist_is_noticed(configurables):
    text = "set train.microbatch or Reading.folder (see export.md, train.py and embed.files())"
    named = named_parameters(text, configurables)
    assert named == [("train", "microbatch"), ("Reading", "folder")]
    assert "microbatch" not in configurables["train"]
    assert "folder" in configurables["Reading"]
