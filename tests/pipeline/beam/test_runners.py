"""Runners as the command line chooses them; each of their errors is one line."""

import re
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam import runners
from tests.fixtures.cloud.dataflow import DRY_RUN
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import ROOT, SETTINGS, command
from tests.fixtures.stderr import error_of
from tripletmill.errors import UsageError

NO_SERVER = ["--runner=PortableRunner", "--job_endpoint=localhost:1", "--job_server_timeout=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = class_folder(tmp_path_factory.mktemp("input") / "images", classes=3, images=3)
    (root / "class_00" / "broken.jpg").write_bytes(b"no image")
    return root


class Elsewhere(PipelineRunner):
    """A runner that cannot start a job."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run_pipeline(self, pipeline, options):
        raise self.error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Pipeline job-1 failed in state FAILED: Traceback (most recent call last):\n"
            "  raise UsageError(\ntripletmill.errors.UsageError: 5 of 31 images rejected"
            " [while running 'Commit/CommitDataSet']\n",
            "5 of 31 images rejected",
        ),
        (
            "Traceback (most recent call last):\n" + "  File\n" * 200 + "KeyError: 1",
            f"--runner=Elsewhere: cannot start the job: ... ile{' File' * 117} KeyError: 1",
        ),
        ("403 Dataflow\nAPI", "--runner=Elsewhere: cannot start the job: 403 Dataflow API"),
        ("", "--runner=Elsewhere: cannot start the job: Exception"),
    ],
)
def test_what_goes_wrong_elsewhere_is_one_line(text, said):
    with (
        pytest.raises(UsageError) as raised,
        runners.clean_errors(),
        runners.pipeline_on(Elsewhere(Exception(text)), PipelineOptions([])),
    ):
        pass
    assert str(raised.value) == said


def test_a_mistake_of_ours_keeps_its_traceback():
    with (
        pytest.raises(ZeroDivisionError),
        runners.clean_errors(),
        runners.pipeline_on(Elsewhere(Exception()), PipelineOptions([])),
    ):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runner=DaskRunner"], "refused, Beam's Dask runner silently loses output"),
        (["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"], "refused"),
        (["--runner=Bogus"], "runner: Bogus"),
        (["--runner=os.getcwd"], "--runner=os.getcwd: not a runner"),
        (["--bogus=1"], "unknown flag '--bogus=1'"),
        (["--direct_running_mode=fast"], "argument --direct_running_mode: invalid choice: 'fast'"),
        (["--direct_num_workers=two"], "argument --direct_num_workers: invalid int value: 'two'"),
        (["--direct_num_workers"], "argument --direct_num_workers: expected one argument"),
        (["--gcs_custom_audit_entries=x"], "Beam's flags: Expecting value"),
        (["--dry_run=perhaps"], "--dry_run=perhaps: True or False"),
        (["--dry_run=True"], "--dry_run: only with --runner=DataflowRunner"),
        (["--template_location=x"], "--template_location: only with --runner=DataflowRunner"),
        (["--runner=PortableRunner"], "--job_endpoint=HOST:PORT missing"),
        (NO_SERVER, "--job_endpoint=localhost:1: no job server answers there"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        runners.runner_and_options(flags)
    assert "usage:" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *(
            (
                [f"--runner={name}Runner", f"--{name.lower()}_job_server_jar=no.jar"],
                f'--runner={name}Runner: cannot start the job: Unable to parse jar URL "no.jar"',
            )
            for name in ("Flink", "Spark")
        ),
        (
            ["--runner=FlinkRunner", "--environment_type=EXTERNAL"],
            "Option external_service_address is required for environment type EXTERNAL",
        ),
    ],
)
def test_runners_that_cannot_start(flags, message):
    with (
        pytest.raises(UsageError, match=f"^{re.escape(message)}"),
        runners.clean_errors(),
        runners.pipeline_on(*runners.runner_and_options(flags)) as job,
    ):
        _ = job | beam.Create([1])


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_an_error_of_a_worker_is_one_line(images, tmp_path, mode):
    """The error is one line, although Beam's workers also print a traceback."""
    nothing = "--gin_param=preprocess.max_rejected_share = 0.0"
    flags = [*SETTINGS, nothing, f"--direct_running_mode={mode}"]
    done = command(f"--input={images}", f"--output={tmp_path / 'data'}", *flags)
    assert error_of(done).startswith("1 of 10 images rejected")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dry_run=True"], "dry run: the job is valid; nothing was started"),
        (["--dry_run=False"], None),
        (["--template_location=gs://b/t"], "template staged at gs://b/t"),
        (["--no_wait_until_finish"], "the job goes on; once it is done, its data set is there"),
        ([], None),
    ],
)
def test_what_does_not_end_with_a_data_set(flags, said):
    # Without credentials nothing looks for the bucket.
    options = ["--temp_location=gs://bucket/tmp", "--no_auth", *flags]
    _, read = runners.runner_and_options([*DRY_RUN[:-1], *options])
    found = runners.instead_of_output(read)
    assert found == said


def test_a_local_run_ends_with_a_data_set():
    _, options = runners.runner_and_options(["--no_wait_until_finish"])
    assert runners.instead_of_output(options) is None


def test_interrupted_while_a_job_runs_elsewhere():
    code = (
        "import os, signal\n"
        "from apache_beam.runners.portability.portable_runner import PortableRunner\n"
        "from pipeline.beam.runners import stop_at_once_on_interrupt\n"
        "stop_at_once_on_interrupt(PortableRunner())\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "\ninterrupted; a job that was started goes on; stop it where it runs\n"
