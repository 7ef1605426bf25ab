"""Asks an index, and shows the answers: a table, JSON lines, or a contact sheet."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from trainer.export.embedder import Embedder
from trainer.pictures.source_images import (
    FilePictures,
    RecordPictures,
    SourceImages,
    thumbnail_or_none,
)
from trainer.search import queries, sheet
from trainer.search.answers import Answer, json_line, table
from trainer.search.index import SearchIndex
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import load_card
from tripletmill.inspection.describe import escaped
from tripletmill.storage.storage import make_folder, require_local, require_new_file

TABLE, JSONL, SHEET = FORMATS = ("table", "jsonl", "sheet")


def query(
    *,
    directory: str,
    images: Sequence[str] = (),
    source_ids: Sequence[str] = (),
    model: str | None = None,
    wanted: queries.Wanted,
    format: str = TABLE,
    output: str | None = None,
    data_dir: str | None = None,
    images_dir: str | None = None,
) -> None:
    """Prints the answer to every query, or writes a sheet of them.

    A query that cannot be answered is named on standard error and counted; the others are answered.

    Args:
      directory: of the index.
      images: image files, and folders of them; or
      source_ids: of images of the index.
      model: export, or run, that made the index's embeddings; for image files.
      wanted: what is asked of each.
      format: of the answers.
      output: where the sheet is written.
      data_dir: the data set that has the sheet's pictures, or
      images_dir: the folder, or list, that was embedded.

    Raises:
      UsageError: something is missing, or of another model; not one query could be answered.
    """
    if bool(images) == bool(source_ids):
        raise UsageError("query: either image files, or --source_id=ID; see --help")
    if images and not model:
        raise UsageError("query: --model=RUN is missing, the exported model that embeds images")
    if format != SHEET and (output or data_dir or images_dir):
        raise UsageError("query: --output, --data and --images are for --format=sheet")
    index = SearchIndex.load(directory)
    index.check_filter(class_name=wanted.class_name, split=wanted.split)
    files = queries.image_files(images)
    pictures = _pictures(output, data_dir, images_dir) if format == SHEET else None
    total = len(files) + len(source_ids)
    for most, number, what in (
        (sheet.MOST, total, "queries"),
        (sheet.MOST_NEIGHBOURS, wanted.neighbours, "neighbours of each"),
    ):
        if pictures and number > most:
            raise UsageError(
                f"query: a sheet holds {most} {what}, these are {number:,}; use --format=jsonl"
            )
    if pictures and output:  # sooner than what takes time
        make_folder(os.path.dirname(os.path.abspath(output)))
    answers: Iterator[tuple[Answer, bytes | None]]
    if model and files:
        require_local(model, "model")
        card = load_card(model)
        queries.require_same_model(index, card)
        answers = queries.by_image(index, Embedder(card), files, wanted)
    else:
        answers = queries.by_source_id(index, source_ids, wanted)

    good = _show(answers, total, format)
    if pictures and output:
        name = os.path.basename(os.path.abspath(directory))
        missing = sheet.write_sheet(output, good, pictures, title=f"{name}: nearest neighbours")
        if missing:
            print(f"no picture of {len(missing):,}: {escaped(missing[0])}, ...", file=sys.stderr)
        print(f"wrote {output}")


def _pictures(output: str | None, data_dir: str | None, images_dir: str | None) -> SourceImages:
    if not output:
        raise UsageError("query: --output=FILE.png is missing, where the sheet is written")
    require_new_file(output, "output")
    if data_dir and not images_dir:
        return RecordPictures(data_dir)
    if images_dir and not data_dir:
        return FilePictures(images_dir)
    raise UsageError("query: a sheet takes its pictures from either --data=DIR or --images=DIR")


def _show(
    answers: Iterable[tuple[Answer, bytes | None]], total: int, format: str
) -> list[tuple[Answer, np.ndarray | None]]:
    """Prints answers as they come; those for a sheet it returns, with the image's thumbnail."""
    kept: list[tuple[Answer, np.ndarray | None]] = []
    problems: list[str] = []
    # Where both are one terminal, the line that updates and those that stay must not mix.
    terminal = sys.stdout.isatty()
    with Progress(sys.stdout if terminal else sys.stderr) as progress:
        say = progress.line if terminal else print
        for num, (answer, image) in enumerate(answers, 1):
            good = answer.problem is None
            if not good:
                problems.append(f"{escaped(answer.query)}: {answer.problem}")
                if total > 1:
                    progress.line(problems[-1])
            if format == JSONL and (good or total > 1):
                say(json_line(answer))
            elif format == TABLE and good:
                say(table(answer))
            elif format == SHEET and good:
                kept.append((answer, thumbnail_or_none(image)))
            if total > 1:
                progress.update(f"answered {num:,} of {total:,}")
    if len(problems) == total:
        raise UsageError(
            problems[0] if total == 1 else f"none of {total:,} queries could be answered"
        )
    if problems:
        print(f"{len(problems):,} of {total:,} could not be answered", file=sys.stderr)
    return kept
