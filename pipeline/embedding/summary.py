"""Prints the summary of a finished embedding job."""

import shlex

from pipeline.beam.outputs import left_out_line
from pipeline.embedding.job import Outcome
from tripletmill.cli.progress import duration
from tripletmill.storage import storage


def print_summary(outcome: Outcome) -> None:
    """Prints what was embedded, what was left out, and what to run next."""
    info = outcome.info
    print(f"\nembeddings in {info.directory}")
    print(f"  {info.num_rows:,} of {info.dim} numbers, in {len(info.shards):,} shards")
    if outcome.images_embedded:
        rate = outcome.images_embedded / outcome.seconds
        took = f"{duration(outcome.seconds)}, {rate:,.{0 if rate > 10 else 2}f} images/s"
        print(f"  {outcome.images_embedded:,} images embedded now, in {took}")
    if outcome.images_reused:
        print(f"  {outcome.images_reused:,} images lay in finished shards")
    print(left_out_line(info.num_rejected, info.directory))
    if outcome.warning:
        print(f"  warning: {outcome.warning}")
    directory = info.directory.rstrip("/")
    print(
        f"next: python -m trainer.search build --embeddings={shlex.quote(directory)}"
        f" --index_dir={shlex.quote(_index_dir(directory))}"
    )


def _index_dir(embeddings_dir: str) -> str:
    """Returns a local folder for the index, named after the folder of the embeddings."""
    parent, _, name = embeddings_dir.rpartition("/")
    index = name.replace("embeddings", "index")
    if index == name:
        index = f"{name}-index"
    # An index cannot be in a bucket.
    return index if storage.is_bucket(embeddings_dir) else storage.join(parent, index)
