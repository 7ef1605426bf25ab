"""The contestants: functions of a folder of images and of an output folder that does not exist."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.preprocess.commands import Finished, run, started
from benchmarks.preprocess.photos import Kind
from benchmarks.processes import CommandError, tail

OURS, POOL, PEER = "pipeline.main", "benchmarks.preprocess.pool", "benchmarks.preprocess.tfds_peer"
WORKERS = 2
MULTI = ("--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}")
IMAGES_PER_SHARD = 1000  # the default of preprocessing
POLL_SECONDS = 0.005

Contestant = Callable[[Path, Path], Finished]


def command(kind: Kind, *flags: str) -> Contestant:
    """Returns `python -m pipeline.main` with some flags."""
    return lambda images, output: run(OURS, *_arguments(kind, images, output), *flags)


def commands(kind: Kind) -> dict[str, Contestant]:
    """Returns the command in one process and in WORKERS processes."""
    return {
        "pipeline.main": command(kind),
        f"pipeline.main, multi_processing, {WORKERS} workers": command(kind, *MULTI),
    }


def pools(kind: Kind) -> dict[str, Contestant]:
    """Returns bare pools with one thread, or one process, for each core."""

    def pool(*flags: str) -> Contestant:
        short_side = f"--short_side={kind.short_side}"
        return lambda images, _: run(POOL, str(images), short_side, *flags)

    return {"bare thread pool": pool(), "bare process pool": pool("--processes")}


def peers(kind: Kind, count: int) -> Mapping[str, Contestant]:
    """Returns TensorFlow Datasets with Beam, in one process and in WORKERS processes.

    Its images lie in two splits.
    """
    shards = max(1, round(count / 2 / IMAGES_PER_SHARD))

    def peer(*flags: str) -> Contestant:
        settings = (f"--short_side={kind.short_side}", f"--shards={shards}")
        return lambda images, output: run(PEER, str(images), str(output), *settings, *flags)

    return {"TFDS": peer(), f"TFDS, multi_processing, {WORKERS} workers": peer(*MULTI)}


def run_and_kill(kind: Kind, images: Path, output: Path, *flags: str, shards: int) -> int:
    """Runs the command and kills it once `shards` shards of its output are finished.

    Returns:
      How many shards are finished after that.

    Raises:
      CommandError: the command ended too early.
    """

    def num_finished() -> int:
        files = (name for _, _, names in os.walk(output / ".work") for name in names)
        return sum(name.endswith(".sidecar.parquet") for name in files)

    with tempfile.TemporaryFile("w+") as log:
        with started(log, OURS, *_arguments(kind, images, output), *flags) as process:
            while num_finished() < shards and process.poll() is None:
                time.sleep(POLL_SECONDS)
        finished = num_finished()
        if finished < shards:
            raise CommandError(f"the command ended before it could be killed: {tail(log)}")
        return finished


def _arguments(kind: Kind, images: Path, output: Path) -> list[str]:
    return [
        f"--input={images}",
        f"--output={output}",
        f"--gin_param=preprocess.short_side = {kind.short_side}",
        # With few classes, the default rule can leave a split empty.
        "--gin_param=preprocess.splits = @SortedSplits()",
    ]
