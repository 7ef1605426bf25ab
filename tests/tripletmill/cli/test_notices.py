"""TensorFlow's start leaves standard error alone, and what comes later is printed."""

import os
import subprocess
import sys

import pytest

from tests.fixtures.project import ROOT
from tripletmill.cli.notices import without_stderr


def test_tensorflow_starts_without_a_word():
    code = "from tripletmill.cli.notices import import_tensorflow; import_tensorflow()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_comes_after_an_error_is_printed(capfd):
    def fail():
        with without_stderr():
            os.write(2, b"dropped\n")
            raise ImportError("no TensorFlow")

    with pytest.raises(ImportError):
        fail()
    os.write(2, b"then\n")
    assert capfd.readouterr().err == "then\n"
