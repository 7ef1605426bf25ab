"""The gin parameters that --help lists, against the programs themselves."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import pipeline.embed
import pipeline.main
from trainer import configurables
from tripletmill.cli.gin_help import NO_DEFAULT, gin_help, source_and_gin_name

ROOT = Path(__file__).parents[3]
PROGRAMS = {
    "pipeline.main": pipeline.main.CONFIGURABLES,
    "pipeline.embed": pipeline.embed.CONFIGURABLES,
    "trainer.main": configurables.CONFIGURABLES,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_lists_the_parameters_and_defaults_of_the_signatures(program):
    listed = {}
    for line in gin_help(PROGRAMS[program]).splitlines():
        name, equals, default = line.strip().partition(" = ")
        if equals:
            listed[name] = default
    expected = {}
    for each in PROGRAMS[program]:
        if not each.startswith("keras."):
            source, name = source_and_gin_name(each)
            for parameter in inspect.signature(pkgutil.resolve_name(source)).parameters.values():
                expected[f"{name}.{parameter.name}"] = parameter
    assert listed.keys() == expected.keys()
    for name, parameter in expected.items():
        default = parameter.default
        assert (listed[name] == NO_DEFAULT) == (default is parameter.empty), name
        if isinstance(default, int | float | str | bool | tuple | None):
            assert eval(listed[name]) == default, name
        # Other defaults are functions, and objects that are made anew.
        assert listed[name]


def test_what_the_program_sets_and_the_classes_of_keras():
    names = ("trainer.export.export:export", "keras.optimizers:Adam")
    text = gin_help(names, set_by_program=["export.configuration"])
    assert "  export.tflite = False\n" in text
    assert "configuration" not in text
    assert text.endswith(" Adam\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_ends_with_them_and_imports_neither_tensorflow_nor_beam(program):
    code = (
        f"import sys; from {program} import main\n"
        "try: main(['--help'])\n"
        "finally: print({'tensorflow', 'keras', 'apache_beam'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, modules = done.stdout.splitlines()
    assert modules == "set()"
    start = next(i for i, line in enumerate(lines) if line.startswith("gin parameters"))
    assert any(line.startswith("  --gin_param") for line in lines[:start])
    set_by_program = {
        f"{name}.{parameter}"
        for name in ("preprocess", "embed")
        for parameter in ("runner", "options")
    } | {*configurables.SET_BY_PROGRAM}
    listed = {line.split(" = ")[0].strip() for line in lines[start:] if " = " in line}
    assert len(listed) > 20
    assert not listed & set_by_program


@pytest.mark.parametrize(
    ("module", "base", "left_out"),
    [
        (
            "keras.optimizers",
            keras.optimizers.Optimizer,
            {"LossScaleOptimizer", "MultiOptimizer", "ScheduleFreeAdamW"},
        ),
        (
            "keras.optimizers.schedules",
            keras.optimizers.schedules.LearningRateSchedule,
            set(),
        ),
    ],
)
def test_every_class_of_keras_is_offered_or_left_out_on_purpose(module, base, left_out):
    classes = inspect.getmembers(importlib.import_module(module), inspect.isclass)
    of_keras = {name for name, each in classes if issubclass(each, base) and each is not base}
    offered = {
        name.partition(":")[2]
        for name in configurables.CONFIGURABLES
        if name.startswith(f"{module}:")
    }
    assert offered == of_keras - left_out
