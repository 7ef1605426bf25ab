"""Who is measured: each is called with a folder of images and an output that is not there yet."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.preprocess.commands import CommandError, Done, run, started, tail
from benchmarks.preprocess.photos import Kind

OURS, POOL, PEER = "pipeline.main", "benchmarks.preprocess.pool", "benchmarks.preprocess.tfds_peer"
WORKERS = 2
MULTI = ("--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}")
IMAGES_A_SHARD = 1000  # the command's default
POLL_SECONDS = 0.005

Contestant = Callable[[Path, Path], Done]


def command(kind: Kind, *flags: str) -> Contestant:
    """`python -m pipeline.main`."""
    return lambda images, output: run(OURS, *_arguments(kind, images, output), *flags)


def commands(kind: Kind) -> dict[str, Contestant]:
    """The command in one process and in several."""
    return {
        "pipeline.main": command(kind),
        f"pipeline.main, multi_processing, {WORKERS} workers": command(kind, *MULTI),
    }


def pools(kind: Kind) -> dict[str, Contestant]:
    """Bare pools of as many threads, or processes, as there are cores."""

    def pool(*flags: str) -> Contestant:
        short_side = f"--short_side={kind.short_side}"
        return lambda images, _: run(POOL, str(images), short_side, *flags)

    return {"bare thread pool": pool(), "bare process pool": pool("--processes")}


def peers(kind: Kind, count: int) -> Mapping[str, Contestant]:
    """TensorFlow Datasets with Beam, in one process and in several; the images in two splits."""
    shards = max(1, round(count / 2 / IMAGES_A_SHARD))

    def peer(*flags: str) -> Contestant:
        made = (f"--short_side={kind.short_side}", f"--shards={shards}")
        return lambda images, output: run(PEER, str(images), str(output), *made, *flags)

    return {"TFDS": peer(), f"TFDS, multi_processing, {WORKERS} workers": peer(*MULTI)}


def killed(kind: Kind, images: Path, output: Path, *flags: str, shards: int) -> float:
    """Kills the command once so many shards of its output are finished.

    Returns:
      How many there are.

    Raises:
      CommandError: it ended before that.
    """

    def finished() -> int:
        files = (name for _, _, names in os.walk(output / ".work") for name in names)
        return sum(name.endswith(".sidecar.parquet") for name in files)

    with tempfile.TemporaryFile("w+") as log:
        with started(log, OURS, *_arguments(kind, images, output), *flags) as process:
            while finished() < shards and process.poll() is None:
                time.sleep(POLL_SECONDS)
        done = finished()
        if done < shards:
            raise CommandError(f"ended before it could be killed: {tail(log)}")
        return done


def _arguments(kind: Kind, images: Path, output: Path) -> list[str]:
    return [
        f"--input={images}",
        f"--output={output}",
        f"--gin_param=preprocess.short_side = {kind.short_side}",
        # With the default rule a few classes can leave a split empty.
        "--gin_param=preprocess.splits = @SortedSplits()",
    ]
