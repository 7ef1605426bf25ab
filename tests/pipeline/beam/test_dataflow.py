"""What Dataflow needs is checked before a job starts; each error is one line."""

import re
import subprocess
import sys

import pytest

from pipeline.beam import runners
from tests.fixtures.cloud.dataflow import DRY_RUN
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import ROOT, command
from tests.fixtures.stderr import error_of
from tripletmill.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (DRY_RUN[:1], "--project, "),
        (DRY_RUN[:3], "--temp_location, --setup_file missing"),
        ([*DRY_RUN, "--temp_location=tmp"], "--temp_location=tmp: expected gs://BUCKET/FOLDER"),
        (
            [*DRY_RUN, "--temp_location=gs://b/t", "--setup_file=no/setup.py"],
            "no/setup.py: no such",
        ),
    ],
)
def test_missing_and_wrong_flags(flags, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        runners.runner_and_options(flags)


def test_it_takes_no_local_paths(tmp_path):
    images = class_folder(tmp_path / "images", classes=1, images=1)
    flags = ["--temp_location=gs://bucket/tmp", f"--input={images}", "--output=gs://bucket/data"]
    error = error_of(command(*DRY_RUN, *flags))
    assert error == f"input {images}: Dataflow's workers need it in a bucket (gs://)"


def test_without_its_packages():
    code = (
        "import sys; sys.modules['google.cloud.dataflow'] = None\n"
        "from pipeline.beam.runners import runner_and_options\n"
        "runner_and_options(['--runner=DataflowRunner'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "UsageError: --runner=DataflowRunner: its packages are missing; pip" in done.stderr
