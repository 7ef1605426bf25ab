"""Runs the pipeline of a job, and counts the images that its workers read."""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipeline.beam import runners
from pipeline.beam.job_settings import JobSettings
from pipeline.beam.outputs import check_apart, check_output, lock_output
from pipeline.beam.progress import ShardProgress

COUNTERS = "tripletmill"  # namespace of the counters
READ, REUSED = "images_read", "images_reused"


@dataclasses.dataclass(frozen=True)
class JobRun:
    """What a finished job did.

    Attributes:
      images_read: images that this job read, including those that it could not use.
      images_reused: images in shards that an earlier, unfinished job had written.
      seconds: duration of the job.
    """

    images_read: int
    images_reused: int
    seconds: float


def count_images(*, read: int = 0, reused: int = 0) -> None:
    """Counts images on a worker, for `JobRun`."""
    Metrics.counter(COUNTERS, READ).inc(read)
    Metrics.counter(COUNTERS, REUSED).inc(reused)


def check_paths(options: PipelineOptions, *, output: str, **inputs: str) -> None:
    """Checks the paths of a job before it starts.

    Args:
      options: Beam options.
      output: the output folder.
      **inputs: the paths that the job reads, by their names in messages.

    Raises:
      UsageError: the output folder is inside an input, or the workers cannot reach a path.
    """
    for name, path in inputs.items():
        check_apart(name, path, output)
    runners.check_paths(options, **inputs, output=output)


def run_pipeline(
    job: JobSettings,
    build: Callable[[beam.Pipeline], None],
    runner: PipelineRunner,
    options: PipelineOptions,
) -> JobRun | None:
    """Runs a job's pipeline. The output is locked, and progress is shown, if the job ends here.

    Args:
      job: settings of the job.
      build: adds the steps of the job to a pipeline.
      runner: Beam runner.
      options: Beam options.

    Returns:
      None if the options ask for something else than a finished job
      (`runners.instead_of_output`).

    Raises:
      UsageError: the output folder holds something else; otherwise as `runners.pipeline_on`.
    """
    check_output(job)
    start = time.monotonic()
    ends_here = runners.instead_of_output(options) is None
    with contextlib.ExitStack() as stack:
        if ends_here:
            stack.enter_context(lock_output(job))
            stack.enter_context(ShardProgress(job.output, job.verb))
        pipeline = stack.enter_context(runners.pipeline_on(runner, options))
        build(pipeline)
    if not ends_here:
        return None
    return JobRun(
        images_read=runners.counted(pipeline, COUNTERS, READ),
        images_reused=runners.counted(pipeline, COUNTERS, REUSED),
        seconds=time.monotonic() - start,
    )
