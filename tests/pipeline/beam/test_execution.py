"""All engines write the same bytes; an engine that is not available gives one line of error.

Local runs have three modes; there is a portable job server with an external worker, and Dataflow as
far as it works without the cloud. Workers elsewhere have only the package that was staged for them.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline.beam import runners
from tests.fixtures.cloud import staged_job
from tests.fixtures.cloud.dataflow import SubmittedJob, dataflow_api
from tests.fixtures.cloud.emulators import PROJECT, Emulator, python_emulator
from tests.fixtures.cloud.metadata import metadata_server
from tests.fixtures.cloud.processes import server_process
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import SETTINGS, content
from tests.fixtures.project import copy_project
from tests.fixtures.stderr import error_of

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs/dataflow.md"
BUCKET = "photos"
NOTHING_REJECTED = ["--gin_param=preprocess.max_rejected_share = 0.0"]
STEPS = {"List", "Deduplicate", "Plan", "WriteShards", "Commit"}


def documented(runner: str) -> list[str]:
    """The flags of the documented command for a runner, with the test's bucket in them."""
    return next(flags for flags in documented_commands() if f"--runner={runner}" in flags)


def documented_commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    text = "".join(blocks).replace("BUCKET", BUCKET).replace("PROJECT", PROJECT)
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if "pipeline.main" in line]
    return [command[command.index("pipeline.main") + 1 :] for command in commands]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The folder where the commands run, because building a package leaves files there."""
    return copy_project(tmp_path_factory.mktemp("clone") / "tripletmill")


@pytest.fixture(scope="module")
def command(project):
    """Runs python -m pipeline.main with the settings of all these tests."""

    def run(*flags: str, environment: Mapping[str, str] = {}) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.main", *SETTINGS, *flags],
            cwd=project,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = class_folder(tmp_path_factory.mktemp("input") / "images", classes=6, images=5)
    (root / "class_00" / "broken.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def data_set(command, images, tmp_path_factory) -> dict[str, str]:
    """The files that every engine must write."""
    output = tmp_path_factory.mktemp("output") / "data"
    done = command(f"--input={images}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    return content(output)


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_local_workers(command, images, data_set, tmp_path, mode):
    done = command(
        f"--input={images}",
        f"--output={tmp_path / 'data'}",
        f"--direct_running_mode={mode}",
        "--direct_num_workers=2",
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "data") == data_set


@pytest.fixture(scope="module")
def bucket(images) -> Iterator[Emulator]:
    with python_emulator() as emulator:
        emulator.make_bucket(BUCKET)
        for path in images.rglob("*.*"):
            emulator.put(BUCKET, f"photos/{path.relative_to(images)}", path.read_bytes())
        yield emulator


@pytest.fixture(scope="module")
def cloud(bucket) -> Iterator[dict[str, str]]:
    """Variables with which a command finds the bucket and credentials."""
    with metadata_server() as metadata:
        yield {**bucket.environment(), **metadata.environment()}


def test_dry_run(command, bucket, cloud):
    flags = ["--setup_file=setup.py", "--dry_run=True"]
    done = command(*documented("DataflowRunner"), *flags, environment=cloud)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dry run: the job is valid; nothing was started\n"
    assert {name.split("/")[0] for name in bucket.names(BUCKET)} == {"photos"}


@pytest.fixture(scope="module")
def template(command, bucket, cloud) -> dict:
    """A template as it was staged."""
    path = f"gs://{BUCKET}/templates/photos"
    flags = [*documented("DataflowRunner"), f"--template_location={path}"]
    done = command(*flags, environment=cloud)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"template staged at {path}\n"
    return json.loads(bucket.get(BUCKET, "templates/photos"))


def staged(description: dict, name: str, bucket: Emulator) -> bytes:
    """Returns a file that was staged for a job."""
    packages = description["environment"]["workerPools"][0]["packages"]
    [location] = [package["location"] for package in packages if package["name"] == name]
    return bucket.get(BUCKET, location.removeprefix(f"storage.googleapis.com/{BUCKET}/"))


def graph(description: dict, bucket: Emulator) -> bytes:
    """Returns the graph that a job names; the job's description does not contain the graph."""
    url = description["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    return bucket.get(BUCKET, url.removeprefix(f"gs://{BUCKET}/"))


def test_template_holds_the_steps(template, bucket):
    proto = beam_runner_api_pb2.Pipeline.FromString(graph(template, bucket))
    names = {transform.unique_name for transform in proto.components.transforms.values()}
    assert {name.split("/")[0] for name in names} >= STEPS
    assert not [name for name in bucket.names(BUCKET) if name.startswith("data/")]


def test_nothing_of_the_main_module_is_staged(template):
    packages = template["environment"]["workerPools"][0]["packages"]
    names = {package["name"] for package in packages}
    assert names == {"workflow.tar.gz", "submission_environment_dependencies.txt"}


def test_staged_package_holds_what_a_worker_needs(template, bucket, project):
    archive = io.BytesIO(staged(template, "workflow.tar.gz", bucket))
    with tarfile.open(fileobj=archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for package in ("pipeline", "preprocessing"):
        modules = (project / package).rglob("*.py")
        assert {str(path.relative_to(project)) for path in modules} <= names
    assert not [name for name in names if name.startswith(("tests/data", "tests/fixtures", "data"))]


@pytest.fixture(scope="module")
def worker_python(template, bucket, tmp_path_factory) -> Path:
    """A Python with the dependencies and, of this project, only the staged package."""
    root = tmp_path_factory.mktemp("worker")
    create = [sys.executable, "-m", "venv", "--without-pip", str(root / "venv")]
    subprocess.run(create, check=True)
    python = root / "venv/bin/python"
    paths = {"base": str(root / "venv"), "platbase": str(root / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # Python does not read a .pth file that is named in a .pth file, so an editable install has no
    # effect here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = [str(python), "-c", "import pipeline.preprocess.job as m; print(m.__file__)"]
    before = subprocess.run(where, cwd=root, capture_output=True, text=True)
    assert "No module named 'pipeline'" in before.stderr

    package = root / "workflow.tar.gz"
    package.write_bytes(staged(template, package.name, bucket))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--no-input"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", *options, str(package)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    after = subprocess.run(where, cwd=root, capture_output=True, text=True)
    assert after.stdout.startswith(str(site)), after.stderr
    return python


@pytest.fixture(scope="module")
def job_server(images, tmp_path_factory) -> Iterator[list[str]]:
    """The flags of a job on Beam's own job server, which is used like those of Flink and Spark."""
    module = "apache_beam.runners.portability.local_job_service_main"
    folder = f"--staging_dir={tmp_path_factory.mktemp('staging')}"
    with server_process(lambda p: [sys.executable, "-m", module, f"--port={p}", folder]) as port:
        endpoint = f"--job_endpoint=localhost:{port}"
        yield ["--runner=PortableRunner", endpoint, f"--input={images}"]


def test_job_server_with_an_external_worker(command, data_set, job_server, worker_python, tmp_path):
    module = "apache_beam.runners.worker.worker_pool_main"
    # The pool starts `python` in its own working folder.
    script = 'cd "$0" && PATH="$1:$PATH" && shift && exec "$@"'
    away = ["sh", "-c", script, str(tmp_path), str(worker_python.parent)]
    pool = [*away, "python", "-m", module]
    flags = [f"--output={tmp_path / 'data'}", "--environment_type=EXTERNAL"]
    with server_process(lambda p: [*pool, f"--service_port={p}"]) as port:
        done = command(*job_server, *flags, f"--environment_config=localhost:{port}")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "data") == data_set


def test_job_server_without_a_worker(command, job_server, tmp_path):
    flags = [f"--output={tmp_path / 'data'}", "--environment_type=EXTERNAL"]
    error = error_of(command(*job_server, *flags, "--environment_config=localhost:1"))
    assert error.startswith("the job failed: ")
    assert "failed to connect to all addresses" in error


def test_an_error_comes_back_from_a_job_server(command, job_server, tmp_path):
    flags = [f"--output={tmp_path / 'data'}", "--environment_type=LOOPBACK", *NOTHING_REJECTED]
    assert error_of(command(*job_server, *flags)).startswith("1 of 31 images rejected")


@pytest.mark.slow
def test_dataflow_job_runs_from_what_was_staged(
    command, bucket, cloud, data_set, worker_python, tmp_path
):
    def work(job: SubmittedJob) -> dict[str, int]:
        """Acts as a worker: runs the staged graph with the staged package."""
        (tmp_path / "pipeline.pb").write_bytes(graph(job.description, bucket))
        done = subprocess.run(
            [str(worker_python), "-P", staged_job.__file__, str(tmp_path / "pipeline.pb")],
            cwd=tmp_path,
            env={**os.environ, **cloud},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        counters = json.loads(done.stdout)
        assert counters == {"images_read": 31, "images_reused": 0}
        return {**counters, "images_reused": 7}

    with dataflow_api(work) as api:
        endpoint = f"--dataflow_endpoint={api.url}"
        done = command(*documented("DataflowRunner"), endpoint, environment=cloud)
    assert done.returncode == 0, done.stderr
    page = f"https://console.cloud.google.com/dataflow/jobs/us-central1/0?project={PROJECT}"
    assert f"job started: {page}\n" in done.stderr
    assert f"data set toy in gs://{BUCKET}/data/photos\n" in done.stdout
    assert "7 images lay in finished shards; 31 were read now" in done.stdout

    written = {
        name.removeprefix("data/photos/"): sha256(bucket.get(BUCKET, name)).hexdigest()
        for name in bucket.names(BUCKET, "data/photos/")
    }
    # This file holds the fingerprint of the input, which is made of checksums for a bucket but not
    # for a disk.
    assert written.pop("dataset_info.json") != ""
    assert written == {k: v for k, v in data_set.items() if k != "dataset_info.json"}

    [job] = api.jobs
    assert (job.project, job.region) == (PROJECT, "us-central1")
    environment = job.description["environment"]
    [pool] = environment["workerPools"]
    assert pool["machineType"] == "n2-standard-4"
    assert pool["numThreadsPerWorker"] == 1
    assert pool["diskSizeGb"] == 50
    assert pool["autoscalingSettings"] == {"maxNumWorkers": 50}
    assert environment["serviceAccountEmail"] == f"WORKER@{PROJECT}.iam.gserviceaccount.com"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"beam_python{version}_sdk" in pool["workerHarnessContainerImage"]


@pytest.mark.slow
def test_dataflow_job_that_fails(command, cloud):
    def work(job: SubmittedJob) -> dict[str, int]:
        text = "Traceback (most recent call last):\n  File ...\nMemoryError: no more [while running"
        raise RuntimeError(f"{text} 'WriteShards/WriteShard-ptransform-32']\n")

    flags = [*documented("DataflowRunner"), f"--output=gs://{BUCKET}/data/failed"]
    with dataflow_api(work) as api:
        done = command(*flags, f"--dataflow_endpoint={api.url}", environment=cloud)
    page = f"https://console.cloud.google.com/dataflow/jobs/us-central1/0?project={PROJECT}"
    assert f"job started: {page}\n" in done.stderr
    error = error_of(done)
    assert error.startswith("the job failed: ")
    assert "MemoryError: no more [while running" in error
    assert error.endswith(f"; see {page}")


def test_dataflow_with_a_bucket_that_is_not_there(command, cloud):
    flags = [*documented("DataflowRunner"), "--temp_location=gs://not-there/tmp"]
    done = command(*flags, environment=cloud)
    assert error_of(done).startswith("--temp_location=gs://not-there/tmp: 404 GET")


def test_the_documented_flags_are_there():
    commands = documented_commands()
    found = {flag for flags in commands for flag in flags if flag.startswith("--runner")}
    runners_named = {"DataflowRunner", "PortableRunner", "FlinkRunner", "SparkRunner"}
    assert found == {f"--runner={name}" for name in runners_named}
    for flags in commands:
        ours = ("--input", "--output", "--gin_param")
        runners.read_flags([flag for flag in flags if not flag.startswith(ours)])
