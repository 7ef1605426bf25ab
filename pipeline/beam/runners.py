"""Chooses the Beam runner that the flags name, runs pipelines on it, and reports their errors."""

import argparse
import contextlib
import io
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, create_runner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipeline.beam import dataflow
from tripletmill.errors import UsageError

# Names of runners that run on this machine. Beam's own SwitchingDirectRunner would first try to
# download another runner.
LOCAL = ("direct", "fnapi", "bundlebaseddirect", "switchingdirect")
PORTABLE = ("portable", "flink", "spark")
# Beam silently ignores these flags on all other runners.
ONLY_WITH = {
    "dry_run": ("dataflow",),
    "template_location": ("dataflow",),
    "output_executable_path": PORTABLE,
}
# A running job server answers in milliseconds. Beam itself would wait for 300 seconds.
ANSWER_SECONDS = 10.0
# Beam appends this to the message of an exception that a step of the job raised.
STEP = " [while running"
# Finds our UsageError in the text of a runner's error.
OUR_ERROR = re.compile(r"UsageError: (.*?)(?: \[while running|\\n|\n|$)")
# Only the last characters of any other error of Beam are shown, because a traceback ends with the
# cause.
SHOWN = 600


def runner_and_options(beam_flags: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """Reads Beam's flags, and checks that the runner that they name can start.

    Local runs use the FnApiRunner. DaskRunner is refused, because it loses output without an error.

    Raises:
      UsageError: Beam does not know a flag or does not accept its value; the runner is refused; or
        the runner lacks a flag, a package, credentials, a bucket or its job server.
    """
    options = read_flags(beam_flags)
    kind = _kind(options)
    _check_dry_run(options)
    given = options.get_all_options()
    for flag, kinds in ONLY_WITH.items():
        if given[flag] and kind not in kinds:
            names = " or ".join(f"{name.title()}Runner" for name in kinds)
            raise UsageError(f"--{flag}: only with --runner={names}")
    if kind in LOCAL:
        return _local(options), options
    name = options.view_as(StandardOptions).runner
    if "dask" in kind:
        raise UsageError(
            "--runner=DaskRunner: refused, Beam's Dask runner silently loses output; use"
            " --direct_num_workers, or a Flink, Spark or Dataflow runner"
        )
    try:
        runner = create_runner(name)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"--runner={name}: {error}") from error
    if not isinstance(runner, PipelineRunner):
        raise UsageError(f"--runner={name}: not a runner of Apache Beam")
    if kind == "dataflow":
        dataflow.prepare(runner, options)
    elif kind in PORTABLE:
        _check_job_server(kind, options)
    return runner, options


def read_flags(beam_flags: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options; raises UsageError for a flag or a value that Beam does not know."""
    unknown: list[str] = []

    class Collector(PipelineOptions):
        """Collects the flags that no option class of Beam knows."""

        @staticmethod
        def _warn_on_unknown_options(unknown_args: list[str], parser: object) -> None:
            unknown.extend(unknown_args)

    logging.basicConfig()  # Beam would do this below, but with the redirected standard error.
    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            options = Collector(list(beam_flags))
            options.get_all_options(display_warnings=True, retain_unknown_options=True)
    except SystemExit as error:
        # argparse prints every flag of Beam before it says what is wrong.
        raise UsageError(usage.getvalue().rpartition(" error: ")[2]) from error
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise UsageError(f"Beam's flags: {error}") from error
    if unknown:
        raise UsageError(f"unknown flag {unknown[0]!r}: neither ours nor Apache Beam's; see --help")
    return PipelineOptions(list(beam_flags))


def _kind(options: PipelineOptions) -> str:
    """Returns the name of the runner in lower case, without "runner": "direct", "dataflow", ..."""
    name = options.view_as(StandardOptions).runner or "direct"
    return name.rpartition(".")[2].lower().removesuffix("runner")


def _check_dry_run(options: PipelineOptions) -> None:
    """Turns --dry_run into a truth value, because Beam takes any text for true."""
    test = options.view_as(TestOptions)
    values = {"true": True, "1": True, "false": False, "0": False}
    if str(test.dry_run).lower() not in values:
        raise UsageError(f"--dry_run={test.dry_run}: True or False")
    test.dry_run = values[str(test.dry_run).lower()]


def _local(options: PipelineOptions) -> FnApiRunner:
    direct = options.view_as(DirectOptions)
    if direct.direct_num_workers < 0:
        raise UsageError(
            f"--direct_num_workers={direct.direct_num_workers}: 0 (one for each core) or more"
        )
    # A local run is over when Beam returns, whatever the flag says.
    options.view_as(StandardOptions).no_wait_until_finish = False
    if direct.direct_running_mode != "multi_processing":
        return FnApiRunner()
    # Does what Beam does in this mode, but with our worker instead of Beam's.
    direct.direct_running_mode = "in_memory"
    # Beam would wait without end for a worker that does not find this package.
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.append({root!r}); from pipeline.beam.worker import main; main()"
    command = f"exec {shlex.join([sys.executable, '-c', code])}"
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


def _check_job_server(kind: str, options: PipelineOptions) -> None:
    portable = options.view_as(PortableOptions)
    endpoint = portable.job_endpoint
    if not endpoint and kind == "portable":
        raise UsageError("--runner=PortableRunner: --job_endpoint=HOST:PORT missing")
    if not endpoint or endpoint == "embed":
        return
    with grpc.insecure_channel(endpoint) as channel:
        try:
            wait = min(ANSWER_SECONDS, portable.job_server_timeout)
            grpc.channel_ready_future(channel).result(timeout=wait)
        except grpc.FutureTimeoutError as error:
            raise UsageError(f"--job_endpoint={endpoint}: no job server answers there") from error


def is_local(runner: PipelineRunner) -> bool:
    """Returns whether this process or its children do the work."""
    return isinstance(runner, FnApiRunner)


def check_paths(options: PipelineOptions, **paths: str) -> None:
    """Raises UsageError for a path that the workers cannot reach.

    The workers of Dataflow have no file system in common with this machine. The workers of other
    runners may have one.
    """
    if _kind(options) == "dataflow":
        dataflow.check_paths(**paths)


def instead_of_output(options: PipelineOptions, output_is: str = "its data set is") -> str | None:
    """Returns a line about what the run produces if it does not end with a finished output.

    Args:
      options: Beam options.
      output_is: names the output of a job that goes on elsewhere, with the verb.

    Returns:
      None if the run ends with a finished output.
    """
    template = options.view_as(GoogleCloudOptions).template_location
    jar = options.view_as(PortableOptions).output_executable_path
    if options.view_as(TestOptions).dry_run:
        return "dry run: the job is valid; nothing was started"
    if template:
        return f"template staged at {template}"
    if jar:
        return f"job written to {jar}"
    if options.view_as(StandardOptions).no_wait_until_finish:
        return f"the job goes on; once it is done, {output_is} there"
    return None


@contextlib.contextmanager
def pipeline_on(runner: PipelineRunner, options: PipelineOptions) -> Iterator[beam.Pipeline]:
    """Yields a pipeline for the block to build. The end of the block runs the pipeline to its end.

    Raises:
      UsageError: Beam refuses the options; a worker raised the error; or the job cannot be started
        or has failed. A defect in this process keeps its type and its traceback.
    """
    try:
        job = _Job(runner=runner, options=options)
    except ValueError as error:
        lines = str(error).splitlines()
        raise UsageError("; ".join(line.strip(" .") for line in lines[1:] or lines)) from error
    built = False
    try:
        with job:
            yield job
            built = True
    except UsageError as error:
        raise UsageError(str(error).partition(STEP)[0]) from error
    except Exception as error:
        if not built or (is_local(runner) and not isinstance(error, RuntimeError)):
            raise
        raise UsageError(job.failure(error)) from error


class _Job(beam.Pipeline):
    """A pipeline that prints the page on which its job can be watched."""

    started = False
    page = ""

    def run(self, test_runner_api: bool | str = "AUTO") -> PipelineResult:
        result = super().run(test_runner_api)
        self.started = True
        self.page = dataflow.job_page(result, self.options)
        if self.page:
            print(f"job started: {self.page}", file=sys.stderr)
        return result

    def failure(self, error: Exception) -> str:
        """Returns the message about a job that has failed or could not start."""
        text = str(error)
        if our_error := OUR_ERROR.search(text):
            return our_error.group(1)
        shown = " ".join(text.split()) or type(error).__name__
        if len(shown) > SHOWN:
            shown = f"... {shown[-SHOWN:]}"
        if is_local(self.runner):
            return f"the job failed: {shown}; the same command goes on from the finished shards"
        if not self.started:
            return f"--runner={type(self.runner).__name__}: cannot start the job: {shown}"
        return f"the job failed: {shown}; see {self.page or 'the log of the job server'}"


def counted(job: beam.Pipeline, namespace: str, name: str) -> int:
    """Returns a counter of a job that has run; 0 if a remote runner does not report counters."""
    try:
        metrics = job.result.metrics().query(
            MetricsFilter().with_namespace(namespace).with_name(name)
        )
    except Exception:
        if is_local(job.runner):
            raise
        return 0
    return sum(counter.committed or 0 for counter in metrics["counters"])


def stop_at_once_on_interrupt(runner: PipelineRunner | None = None) -> None:
    """Makes Ctrl+C end the process at once.

    Beam can swallow a KeyboardInterrupt, or turn it into pages of traceback. Nothing is lost when
    the process ends, because files are written whole or not at all.
    """
    text = "the same command goes on from the finished shards"
    if runner is not None and not is_local(runner):
        text = "a job that was started goes on; stop it where it runs"

    def stop(*_: object) -> None:
        # print is not safe here, because the signal may have interrupted another print.
        os.write(2, f"\ninterrupted; {text}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


class _WithoutTracebacks:
    """Standard error without the tracebacks of errors that Beam both prints and raises."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        end_of_dropped = self._dropped and text == "\n"
        self._dropped = text.startswith("Traceback (most recent call last):")
        if not self._dropped and not end_of_dropped:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Keeps Beam from printing tracebacks and log lines about errors that it also raises."""
    # Beam's portable runner logs errors to the root logger.
    logger = logging.getLogger()
    level, hook = logger.level, threading.excepthook
    logger.setLevel(logging.CRITICAL)
    # The runner passes errors of its threads on to the main thread.
    threading.excepthook = lambda args: None
    try:
        with contextlib.redirect_stderr(_WithoutTracebacks(sys.stderr)):
            yield
    finally:
        logger.setLevel(level)
        threading.excepthook = hook
