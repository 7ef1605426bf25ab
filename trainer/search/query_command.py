"""Queries an index and shows the answers: as a table, JSON lines, or a contact sheet."""

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
from trainer.search.arguments import FORMATS
from trainer.search.index import SearchIndex
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.inspection.describe import escaped
from tripletmill.storage.storage import make_folder, require_new_file

TABLE, JSONL, SHEET = FORMATS


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
    """Prints the answer to every query, or writes all answers to a contact sheet.

    Queries that cannot be answered are reported on standard error. The other ones are answered.

    Args:
      directory: folder of the index.
      images: image files, and folders of image files. Either these or `source_ids` are given.
      source_ids: source ids of images in the index.
      model: folder of the export that made the embeddings of the index, or of its run. Only image
        files need it.
      wanted: number of neighbours, and the classes and splits to search.
      format: "table", "jsonl" or "sheet".
      output: file to which the sheet is written.
      data_dir: data set that has the pictures for the sheet. A sheet needs it or `images_dir`.
      images_dir: folder or manifest that was embedded.

    Raises:
      UsageError: an argument is missing, a file cannot be used, the index is of another model, or
        no query could be answered.
    """
    if bool(images) == bool(source_ids):
        raise UsageError("query: either image files, or --source_id=ID; see --help")
    if images and not model:
        raise UsageError(
            "query: --model_dir=RUN is missing, the exported model that embeds image files"
        )
    if format != SHEET and (output or data_dir or images_dir):
        raise UsageError("query: --output, --data_dir and --images are for --format=sheet")
    index = SearchIndex.load(directory)
    index.check_filter(class_name=wanted.class_name, split=wanted.split)
    files = queries.image_files(images)
    pictures = _pictures(output, data_dir, images_dir) if format == SHEET else None
    total = len(files) + len(source_ids)
    if pictures and output:
        if total > sheet.MOST or wanted.neighbours > sheet.MOST_NEIGHBOURS:
            raise UsageError(
                f"query: a sheet holds {sheet.MOST} queries and {sheet.MOST_NEIGHBOURS} neighbours"
                " of each; use --format=jsonl"
            )
        # Made now, so that an error is known before the model is loaded.
        make_folder(os.path.dirname(os.path.abspath(output)))
    answers: Iterator[tuple[Answer, bytes | None]]
    if model and files:
        embedder = Embedder(queries.model_of(index, model))
        answers = queries.by_image(index, embedder, files, wanted)
    else:
        answers = queries.by_source_id(index, source_ids, wanted)

    answered = _show(answers, total, format)
    if pictures and output:
        name = os.path.basename(os.path.abspath(directory))
        missing = sheet.write_sheet(output, answered, pictures, title=f"{name}: nearest neighbours")
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
    raise UsageError(
        "query: a sheet takes its pictures from either --data_dir=DIR or --images=PATH"
    )


def _show(
    answers: Iterable[tuple[Answer, bytes | None]], total: int, format: str
) -> list[tuple[Answer, np.ndarray | None]]:
    """Prints each answer; for a sheet, returns the answers with the thumbnails of their images."""
    for_sheet: list[tuple[Answer, np.ndarray | None]] = []
    problems: list[str] = []
    # On a terminal, answers and the line that updates must go through one stream, or they mix.
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
                for_sheet.append((answer, thumbnail_or_none(image)))
            if total > 1:
                progress.update(f"answered {num:,} of {total:,}")
    if len(problems) == total:
        raise UsageError(
            problems[0] if total == 1 else f"none of {total:,} queries could be answered"
        )
    if problems:
        print(f"{len(problems):,} of {total:,} could not be answered", file=sys.stderr)
    return for_sheet
