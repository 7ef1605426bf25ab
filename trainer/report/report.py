"""Writes the report of a run."""

from __future__ import annotations

import os

from trainer.pictures.source_images import RecordPictures
from trainer.pictures.thumbnails import Thumbnails
from trainer.report.analysis import analyse
from trainer.report.inputs import load
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
    """Writes one HTML file that needs no other files, and prints a summary.

    Args:
      model_dir: folder of the run.
      data_dir: the data set that was embedded.
      embeddings_dir: folder that `python -m pipeline.embed` wrote. None: model_dir/embeddings.
      output: the file that is written. None: model_dir/report.html.
      split: the split whose images are queries. None: `query`, searched in `gallery`, if both
        exist, and otherwise `test`.
      listed: largest number of wrong labels, and of near-duplicates, that the page shows.

    Returns:
      The path of the file.

    Raises:
      UsageError: an input is missing, or the inputs do not belong together.
    """
    output = output or os.path.join(model_dir, FILE)
    require_new_file(output, "output")
    inputs = load(
        model_dir=model_dir,
        data_dir=data_dir,
        embeddings_dir=embeddings_dir or os.path.join(model_dir, "embeddings"),
        split=split,
    )
    pictures = RecordPictures(data_dir)
    analysis = analyse(inputs, pictures)
    thumbnails = Thumbnails(inputs.embeddings, pictures)
    html = render(inputs, analysis, thumbnails, listed=listed).encode()
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    write_file(output, html)
    metrics = analysis.metrics
    print(
        f"{inputs.split}: {metrics.num_queries:,} queries, Recall@1"
        f" {metrics.mean[recall_name(1)]:.3f}, MAP@R {metrics.map_at_r:.3f}"
    )
    print(
        f"all {len(inputs.embeddings):,} images: {len(analysis.wrong_labels.row):,} lie among the"
        " images of another class; near-duplicates of two classes or splits:"
        f" {len(analysis.near_duplicates.pairs):,}"
    )
    if thumbnails.missing:
        print(f"warning: {len(thumbnails.missing):,} pictures are missing or damaged")
    print(f"wrote {output} ({len(html) / 1e6:.1f} MB)")
    return output
