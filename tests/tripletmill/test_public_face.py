"""The names that `import tripletmill` offers. They are imported when they are first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import tripletmill

ROOT = Path(__file__).parents[2]


def test_importing_the_package_loads_no_tensorflow():
    code = "import sys, tripletmill; print({'tensorflow', 'keras', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("name", tripletmill.__all__)
def test_every_public_name_resolves(name):
    assert getattr(tripletmill, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tripletmill' has no attribute 'TripletLoss'"):
        _ = tripletmill.TripletLoss
