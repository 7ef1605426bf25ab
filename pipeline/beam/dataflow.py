"""Checks what Dataflow needs before a job starts.

Beam itself reports a missing package, flag or bucket only minutes later, or not at all.
"""

import contextlib
import os

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from tripletmill.errors import UsageError
from tripletmill.storage import bucket, storage


def prepare(runner: PipelineRunner, options: PipelineOptions) -> None:
    """Completes the options of a job on Dataflow.

    Raises:
      UsageError: a package, a flag, a file or a bucket is missing.
    """
    try:
        import google.cloud.dataflow
        import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--runner=DataflowRunner: its packages are missing; pip install -e '.[gcp]'"
        ) from error
    cloud = options.view_as(GoogleCloudOptions)
    setup = options.view_as(SetupOptions)
    cloud.region = cloud.region or runner.get_default_gcp_region()
    # Without both, Beam would create a bucket of its own.
    cloud.temp_location = cloud.temp_location or cloud.staging_location
    image = options.view_as(WorkerOptions).sdk_container_image
    needed = {
        "project": cloud.project,
        "region": cloud.region,
        "temp_location": cloud.temp_location,
        "setup_file": setup.setup_file or setup.extra_packages or image,
    }
    missing = [f"--{flag}" for flag, value in needed.items() if not value]
    if missing:
        raise UsageError(f"--runner=DataflowRunner: {', '.join(missing)} missing")
    if setup.setup_file:
        if not os.path.isfile(setup.setup_file):
            raise UsageError(f"--setup_file {setup.setup_file}: no such file")
        # Beam changes into the folder of the file, and fails if the path has no folder.
        folder, name = os.path.split(setup.setup_file)
        setup.setup_file = os.path.join(folder or ".", name)
    if setup.save_main_session is None:
        # No step is defined in the main module, so workers do not need its contents.
        setup.save_main_session = False
    for flag in ("temp_location", "staging_location"):
        path = getattr(cloud, flag)
        if path and not storage.is_bucket(path):
            raise UsageError(f"--{flag}={path}: expected gs://BUCKET/FOLDER")
        if path and not options.view_as(TestOptions).dry_run and not cloud.no_auth:
            _check_bucket(flag, path, cloud.project)


def _check_bucket(flag: str, path: str, project: str) -> None:
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage import Client
    from requests import RequestException

    try:
        with contextlib.closing(Client(project=project)) as client:
            client.get_bucket(bucket.split(path)[0], timeout=30, retry=None)
    except (GoogleAPIError, GoogleAuthError, RequestException, ValueError) as error:
        # Beam would retry for eight minutes without a message.
        raise UsageError(f"--{flag}={path}: {error}") from error


def check_paths(**paths: str) -> None:
    """Raises UsageError for a local path, because each worker would look on its own disk."""
    for name, path in paths.items():
        if not storage.is_bucket(path):
            raise UsageError(f"{name} {path}: Dataflow's workers need it in a bucket (gs://)")


def job_page(result: PipelineResult, options: PipelineOptions) -> str:
    """Returns the web page of a job; "" if no job was started."""
    if not getattr(result, "has_job", False):
        return ""
    cloud = options.view_as(GoogleCloudOptions)
    return (
        f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}"
        f"?project={cloud.project}"
    )
