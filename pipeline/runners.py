"""Which Beam runner a command line asks for, and errors that come back from its workers."""

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from preprocessing.errors import UsageError

# Beam's own name for "here": a switch that first tries to download another runner.
LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "BundleBasedDirectRunner")
# What a worker's UsageError looks like in the text of the runner's error.
WORKER_ERROR = re.compile(r"UsageError: (.*?)(?: \[while running|\\n|\n|$)")
STEP = re.compile(r" \[while running .*", re.DOTALL)


def runner_and_options(beam_flags: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """Reads Beam's flags; raises UsageError for one that Beam does not know.

    Local runs use the FnApiRunner. DaskRunner is refused: it loses output without an error.
    """
    unknown = _unknown(beam_flags)
    if unknown:
        raise UsageError(f"unknown flag {unknown[0]!r}: neither ours nor Apache Beam's; see --help")
    options = PipelineOptions(list(beam_flags))
    workers = options.view_as(DirectOptions).direct_num_workers
    if workers < 0:
        raise UsageError(f"--direct_num_workers={workers}: 0 (one a core) or more")
    name = options.view_as(StandardOptions).runner
    if name in LOCAL_RUNNERS:
        return FnApiRunner(), options
    if "dask" in name.lower():
        raise UsageError(
            "--runner=DaskRunner: refused, Beam's Dask runner silently loses output; use"
            " --direct_num_workers, or a Flink, Spark or Dataflow runner"
        )
    try:
        return create_runner(name), options
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(f"--runner={name}: {error}") from error


def _unknown(beam_flags: Sequence[str]) -> list[str]:
    class Collector(PipelineOptions):
        """Sees what no option class of Beam's has taken."""

        unknown: list[str] = []  # noqa: RUF012

        def _warn_on_unknown_options(self, unknown_args: list[str], parser: object) -> None:
            Collector.unknown = unknown_args

    Collector(list(beam_flags)).get_all_options(display_warnings=True, retain_unknown_options=True)
    return Collector.unknown


def stop_at_once_on_interrupt() -> None:
    """Makes Ctrl+C end the process at once.

    Beam can swallow a KeyboardInterrupt, or wrap it in pages of traceback; and nothing is lost,
    since files appear whole or not at all.
    """

    def stop(*_: object) -> None:
        # Not print: this may have come in the middle of another one.
        os.write(2, b"\ninterrupted; the same command goes on from the finished shards\n")
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Brings a UsageError that a worker raised back as one, without the runner's logging."""
    logger = logging.getLogger("apache_beam")
    level, hook = logger.level, threading.excepthook
    logger.setLevel(logging.CRITICAL)
    # What fails in the runner's threads comes back to the main one.
    threading.excepthook = lambda args: None
    try:
        yield
    except UsageError as error:
        raise UsageError(STEP.sub("", str(error))) from error
    except RuntimeError as error:
        found = WORKER_ERROR.search(str(error))
        if found is None:
            raise
        raise UsageError(found.group(1)) from error
    finally:
        logger.setLevel(level)
        threading.excepthook = hook
