"""The house rules: imports go one way, gin/ shadows nothing, the package can be shipped."""

import ast
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.fixtures.project import copy_project

ROOT = Path(__file__).parents[1]
# Who may import whom. A package may always import itself.
PACKAGES = {
    "tripletmill": (),
    "preprocessing": ("tripletmill",),
    "pipeline": ("preprocessing", "tripletmill"),
    "trainer": ("tripletmill",),
    "demo": ("tripletmill",),
}
# Who may import whom within a package: modules and folders on the left may import those on the
# right, and themselves. What is not on the left (the main.py files and trainer/config.py) is the
# edge, and may import everything in its package.
WITHIN = {
    "tripletmill": {
        "errors": (),
        "images": ("errors",),
        "losses": ("errors",),
        "cli": ("errors",),
        "storage": ("errors", "cli"),
        "formats": ("errors", "images", "storage", "cli"),
        "inspection": ("errors", "images", "storage", "cli", "formats"),
    },
    "preprocessing": {"splits": (), "sources": (), "writing": ("sources", "splits")},
    "pipeline": {"beam": (), "preprocess": ("beam",), "embedding": ("beam", "preprocess")},
    "trainer": {
        "workarounds": (),
        "data": ("workarounds",),
        "models": ("workarounds",),
        "distributed": ("workarounds",),
        "runs": ("workarounds",),
        "pictures": (),
        "retrieval": ("distributed",),
        "evaluation": ("retrieval", "data", "distributed", "runs", "pictures"),
        "training": (
            "evaluation",
            "data",
            "models",
            "distributed",
            "runs",
            "pictures",
            "workarounds",
        ),
        "export": ("evaluation.results", "data.image_ops", "models", "runs"),
        "search": ("export.embedder", "pictures", "retrieval.distances"),
        "serve": ("search", "export.embedder", "pictures"),
        "report": ("retrieval", "evaluation.results", "runs", "pictures"),
    },
}
OURS = {*PACKAGES, "tests", "benchmarks", "tools"}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, also within its functions."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    allowed = {package, *PACKAGES[package]}
    for path in (ROOT / package).rglob("*.py"):
        assert {name.partition(".")[0] for name in imported(path)} & OURS <= allowed, path


@pytest.mark.parametrize("package", WITHIN)
def test_folders_of_a_package_import_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        here = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        for place, allowed in WITHIN[package].items():
            if is_in(here, place):
                for module in imported(path):
                    if is_in(module, package):
                        inner = module.removeprefix(f"{package}.")
                        assert any(is_in(inner, each) for each in (place, *allowed)), (path, module)


def test_every_folder_of_a_package_has_its_rule():
    for package, rules in WITHIN.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders <= {*rules}


def test_preprocessing_starts_without_tensorflow_and_beam():
    files = (ROOT / "preprocessing").rglob("[a-z]*.py")
    modules = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files)
    imports = f"import sys, {', '.join(modules)}"
    code = f"{imports}; print({{'tensorflow', 'apache_beam'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_gin_folder_does_not_shadow_gin_config():
    assert not list((ROOT / "gin").rglob("*.py"))
    code = "import gin; print(gin.parse_config, gin.__file__)"
    for flags in (["-c", code], ["-I", "-c", f"import sys; sys.path.insert(0, '{ROOT}'); {code}"]):
        done = subprocess.run([sys.executable, *flags], cwd=ROOT, capture_output=True, text=True)
        assert "site-packages" in done.stdout, done.stderr


def test_functions_are_short():
    """Signature and docstring included."""
    long = [
        (path.name, node.name, lines)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := node.end_lineno - node.lineno + 1) > 80
    ]
    assert not long


def test_modules_are_short():
    long = [
        (path.name, lines)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    ]
    assert not long


def test_source_distribution_holds_what_a_worker_needs(tmp_path):
    """What Beam builds from --setup_file ./setup.py."""
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
