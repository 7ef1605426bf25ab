"""Writes the report of a run."""

from __future__ import annotations

import os

from trainer.pictures.source_images import RecordPictures
from trainer.pictures.thumbnails import Thumbnails
from trainer.report import inputs as reading
from trainer.report.analysis import Analysis, analyse
from trainer.report.page import render
from trainer.retrieval.metrics import recall_name
from tripletmill.storage.storage import require_new_file, write_file

LISTED = 24
FILE = "report.html"


def write_report(
    *,
    model_dir: str,
    data_dir: str,
    embeddings_dir: str | None = None,
    output: str | None = None,
    split: str | None = None,
    listed: int = LISTED,
) -> str:
    """Writes one HTML file that needs no other, and says in some lines what is in it.

    Args:
      model_dir: folder of the run.
      data_dir: the data set that was embedded.
      embeddings_dir: what `python -m pipeline.embed` wrote; None: model_dir/embeddings.
      output: the file; None: model_dir/report.html.
      split: whose images are queries; None: `query`, against `gallery`, where there are both, else
        `test`.
      listed: wrong labels and near-duplicates that are shown, at most of each.

    Returns:
      The path of the file.

    Raises:
      UsageError: something is missing, or does not belong together.
    """
    output = output or os.path.join(model_dir, FILE)
    require_new_file(output, "output")
    given = reading.load(
        model_dir=model_dir,
        data_dir=data_dir,
        embeddings_dir=embeddings_dir or os.path.join(model_dir, "embeddings"),
        split=split,
    )
    pictures = RecordPictures(data_dir)
    found = analyse(given, pictures)
    thumbnails = Thumbnails(given.embeddings, pictures)
    html = render(given, found, thumbnails, listed=listed)
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    write_file(output, html.encode())
    _say(given, found, thumbnails)
    print(f"wrote {output} ({len(html.encode()) / 1e6:.1f} MB)")
    return output


def _say(given: reading.Inputs, found: Analysis, thumbnails: Thumbnails) -> None:
    metrics = found.metrics
    print(
        f"{given.split}: {metrics.num_queries:,} queries, Recall@1"
        f" {metrics.mean[recall_name(1)]:.3f}, MAP@R {metrics.map_at_r:.3f}"
    )
    print(
        f"all {len(given.embeddings):,} images: {len(found.wrong_labels.row):,} sit amid another"
        " class; near-duplicates of two classes or splits:"
        f" {len(found.near_duplicates.pairs):,}"
    )
    if thumbnails.missing:
        print(f"warning: {len(thumbnails.missing):,} pictures are missing or damaged")
