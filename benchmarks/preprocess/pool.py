"""Converts images in a bare pool, without Beam; nothing is planned and nothing is written.

python -m benchmarks.preprocess.pool FOLDER --short_side=S [--processes]

Lists the folder, reads each file, calls canonical_jpeg, and computes the SHA-256 of source and
result. Threads take one image at a time; processes take many and send the JPEGs back.
"""

import argparse
import functools
import hashlib
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

from tripletmill.images import ImageSettings, canonical_jpeg

IMAGES_PER_TASK = 32


def convert(path: str, settings: ImageSettings) -> tuple[bytes, bytes, bytes]:
    """Returns the canonical JPEG, its hash, and the hash of the source file."""
    with open(path, "rb") as file:
        data = file.read()
    jpeg = canonical_jpeg(data, settings).jpeg
    return jpeg, hashlib.sha256(jpeg).digest(), hashlib.sha256(data).digest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--short_side", type=int)
    parser.add_argument("--processes", action="store_true")
    flags = parser.parse_args()
    files = [
        os.path.join(folder, name) for folder, _, names in os.walk(flags.folder) for name in names
    ]
    cores = os.cpu_count() or 1
    pool: Executor
    if flags.processes:
        # Spawned, because a forked process would not need to import anything.
        pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn"))
    else:
        pool = ThreadPoolExecutor(cores)
    work = functools.partial(convert, settings=ImageSettings(short_side=flags.short_side))
    with pool:
        for _ in pool.map(work, files, chunksize=IMAGES_PER_TASK):
            pass


if __name__ == "__main__":
    main()
