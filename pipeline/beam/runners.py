"""Which Beam runner a command line asks for, pipelines on it, and what goes wrong there."""

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

# Beam's own name for "here": a switch that first tries to download another runner.
LOCAL = ("direct", "fnapi", "bundlebaseddirect", "switchingdirect")
PORTABLE = ("portable", "flink", "spark")
# Flags that Beam would silently do nothing about on other runners.
ONLY_WITH = {
    "dry_run": ("dataflow",),
    "template_location": ("dataflow",),
    "output_executable_path": PORTABLE,
}
# A job server that runs answers in milliseconds; Beam itself waits for 300 seconds.
ANSWER_SECONDS = 10.0
# What Beam appends to an exception that a step of the job raised.
STEP = " [while running"
# What a UsageError of ours looks like in the text of a runner's error.
OUR_ERROR = re.compile(r"UsageError: (.*?)(?: \[while running|\\n|\n|$)")
# Characters of any other error of Beam's that are shown: its end, since a traceback says there what
# happened.
SHOWN = 600


def runner_and_options(beam_flags: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """Reads Beam's flags, and sees that the runner they name has what it needs to start.

    Local runs use the FnApiRunner. DaskRunner is refused: it loses output without an error.

    Raises:
      UsageError: a flag that Beam does not know, or a value that it does not take; a runner that
        is refused, or lacks a flag, a package, credentials, a bucket or its job server.
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
    """Beam's options; raises UsageError for a flag or a value that Beam does not know."""
    unknown: list[str] = []

    class Collector(PipelineOptions):
        """Sees what no option class of Beam's has taken."""

        @staticmethod
        def _warn_on_unknown_options(unknown_args: list[str], parser: object) -> None:
            unknown.extend(unknown_args)

    logging.basicConfig()  # as Beam does, but with the true standard error
    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            options = Collector(list(beam_flags))
            options.get_all_options(display_warnings=True, retain_unknown_options=True)
    except SystemExit as error:
        # argparse, which prints every flag of Beam's before it says what is wrong.
        raise UsageError(usage.getvalue().rpartition(" error: ")[2]) from error
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise UsageError(f"Beam's flags: {error}") from error
    if unknown:
        raise UsageError(f"unknown flag {unknown[0]!r}: neither ours nor Apache Beam's; see --help")
    return PipelineOptions(list(beam_flags))


def _kind(options: PipelineOptions) -> str:
    """The runner's name as Beam reads it, in small letters: "direct", "dataflow", ..."""
    name = options.view_as(StandardOptions).runner or "direct"
    return name.rpartition(".")[2].lower().removesuffix("runner")


def _check_dry_run(options: PipelineOptions) -> None:
    """Makes a truth value of --dry_run; Beam takes any text for true."""
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
    # The run is over when Beam returns, whatever this says.
    options.view_as(StandardOptions).no_wait_until_finish = False
    if direct.direct_running_mode != "multi_processing":
        return FnApiRunner()
    # What Beam does in this mode, with our worker in place of its own.
    direct.direct_running_mode = "in_memory"
    # A worker that does not find this package would be waited for without end.
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
    """Whether the work is done here, by this process or its children."""
    return isinstance(runner, FnApiRunner)


def check_paths(options: PipelineOptions, **paths: str) -> None:
    """Raises UsageError for a path that the runner's workers cannot have.

    Other runners' workers may share a file system with this machine; Dataflow's do not.
    """
    if _kind(options) == "dataflow":
        dataflow.check_paths(**paths)


def instead_of_output(options: PipelineOptions, what: str = "its data set is") -> str | None:
    """What the options make of a run that does not end with what is called so; else None."""
    template = options.view_as(GoogleCloudOptions).template_location
    jar = options.view_as(PortableOptions).output_executable_path
    if options.view_as(TestOptions).dry_run:
        return "dry run: the job is valid; nothing was started"
    if template:
        return f"template staged at {template}"
    if jar:
        return f"job written to {jar}"
    if options.view_as(StandardOptions).no_wait_until_finish:
        return f"the job goes on; once it is done, {what} there"
    return None


@contextlib.contextmanager
def pipeline_on(runner: PipelineRunner, options: PipelineOptions) -> Iterator[beam.Pipeline]:
    """A pipeline that the block builds, and that runs to its end when the block is left.

    Raises:
      UsageError: Beam refuses the options; a worker raised it; or the job cannot be started, or has
        failed. A defect that this process itself meets keeps its type and its traceback.
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
    """A pipeline that says where it can be watched."""

    started = False
    where = ""

    def run(self, test_runner_api: bool | str = "AUTO") -> PipelineResult:
        result = super().run(test_runner_api)
        self.started = True
        self.where = dataflow.job_page(result, self.options)
        if self.where:
            print(f"job started: {self.where}", file=sys.stderr)
        return result

    def failure(self, error: Exception) -> str:
        """What to say about a job that has failed or could not start."""
        text = str(error)
        if ours := OUR_ERROR.search(text):
            return ours.group(1)
        shown = " ".join(text.split()) or type(error).__name__
        if len(shown) > SHOWN:
            shown = f"... {shown[-SHOWN:]}"
        if is_local(self.runner):
            return f"the job failed: {shown}; the same command goes on from the finished shards"
        if not self.started:
            return f"--runner={type(self.runner).__name__}: cannot start the job: {shown}"
        return f"the job failed: {shown}; see {self.where or 'the log of the job server'}"


def counted(job: beam.Pipeline, namespace: str, name: str) -> int:
    """A counter of a job that has run; 0 where a runner elsewhere does not tell."""
    try:
        found = job.result.metrics().query(
            MetricsFilter().with_namespace(namespace).with_name(name)
        )
    except Exception:
        if is_local(job.runner):
            raise
        return 0
    return sum(counter.committed or 0 for counter in found["counters"])


def stop_at_once_on_interrupt(runner: PipelineRunner | None = None) -> None:
    """Makes Ctrl+C end the process at once.

    Beam can swallow a KeyboardInterrupt, or wrap it in pages of traceback; and nothing is lost,
    since files appear whole or not at all.
    """
    text = "the same command goes on from the finished shards"
    if runner is not None and not is_local(runner):
        text = "a job that was started goes on; stop it where it runs"

    def stop(*_: object) -> None:
        # Not print: this may have come in the middle of another one.
        os.write(2, f"\ninterrupted; {text}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


class _WithoutTracebacks:
    """Standard error, less the tracebacks that Beam prints of errors which it also raises."""

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
    """Keeps Beam from printing tracebacks and log lines of errors that it also raises."""
    # Beam's portable runner logs what went wrong to the root.
    logger = logging.getLogger()
    level, hook = logger.level, threading.excepthook
    logger.setLevel(logging.CRITICAL)
    # What fails in the runner's threads comes back to the main one.
    threading.excepthook = lambda args: None
    try:
        with contextlib.redirect_stderr(_WithoutTracebacks(sys.stderr)):
            yield
    finally:
        logger.setLevel(level)
        threading.excepthook = hook
