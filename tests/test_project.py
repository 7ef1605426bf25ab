"""Rules for the project: imports, module lengths, the name of gin/, and the source package."""

import ast
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.fixtures.project import copy_project

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "tripletmill": {"tripletmill"},
    "preprocessing": {"preprocessing", "tripletmill"},
    "pipeline": {"pipeline", "preprocessing", "tripletmill"},
    "trainer": {"trainer", "preprocessing", "tripletmill"},
    "demo": {"demo", "tripletmill"},
}
OURS = {*MAY_IMPORT, "tests", "benchmarks"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) & OURS <= MAY_IMPORT[package], path


def test_preprocessing_starts_without_tensorflow_and_beam():
    files = (ROOT / "preprocessing").rglob("[a-z]*.py")
    modules = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files)
    imports = f"import sys, {', '.join(modules)}"
    code = f"{imports}; print({{'tensorflow', 'keras', 'apache_beam'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_gin_folder_does_not_shadow_gin_config():
    assert not list((ROOT / "gin").rglob("*.py"))
    code = "import gin; print(gin.parse_config, gin.__file__)"
    for flags in (["-c", code], ["-I", "-c", f"import sys; sys.path.insert(0, '{ROOT}'); {code}"]):
        done = subprocess.run([sys.executable, *flags], cwd=ROOT, capture_output=True, text=True)
        assert "site-packages" in done.stdout, done.stderr


def test_modules_are_short():
    long = [
        (path.name, lines)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    ]
    assert not long


def test_source_distribution_holds_what_a_worker_needs(tmp_path):
    """The archive that Beam builds from --setup_file ./setup.py."""
    project = copy_project(tmp_path / "project")
    command = [sys.executable, "setup.py", "--quiet", "sdist"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [archive] = (project / "dist").glob("tripletmill-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for package in ("tripletmill", "preprocessing", "pipeline", "trainer"):
        kinds = ("*.py", "*.jinja", "static/*")
        files = [path for kind in kinds for path in (ROOT / package).rglob(kind)]
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert not any(name.startswith(("demo/", "benchmarks/")) for name in names)
