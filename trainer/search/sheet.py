"""Answers to queries, as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.pictures.contact_sheet import Tile, contact_sheet
from trainer.pictures.source_images import SourceImages, thumbnail_or_none
from trainer.search.answers import Answer
from trainer.search.index import Entry
from tripletmill.storage.storage import atomic_file

# The largest numbers of queries and of neighbours on a sheet. Few programs open larger pictures.
MOST, MOST_NEIGHBOURS = 200, 50
_MISSING = np.full((96, 96, 3), 200, np.uint8)


def write_sheet(
    path: str,
    answers: Sequence[tuple[Answer, np.ndarray | None]],
    pictures: SourceImages,
    *,
    title: str,
) -> list[str]:
    """Writes a PNG with a row for each query: the query, then its neighbours.

    Args:
      path: the file that is written.
      answers: each answer with a thumbnail of the image file that is the query, uint8 [H, W, 3].
        The thumbnail is None for an image of the index.
      pictures: the source of the pictures of all images of the index.
      title: title of the sheet.

    Returns:
      The source ids that have no picture. The sheet shows a grey square for each of them.
    """
    missing: dict[str, None] = {}

    def tile_of(entry: Entry, match: bool | None = None) -> Tile:
        picture = thumbnail_or_none(pictures.of(entry.source_id, entry.split))
        if picture is None:
            missing[entry.source_id] = None
        caption = entry.class_name or entry.source_id.rpartition("/")[2]
        return Tile(_MISSING if picture is None else picture, caption, match)

    queries, neighbours = [], []
    for answer, picture in answers:
        query = answer.entry
        image = _MISSING if picture is None else picture
        queries.append(tile_of(query) if query else Tile(image, answer.query.rpartition("/")[2]))
        neighbours.append(
            [tile_of(each.entry, _match(query, each.entry)) for each in answer.neighbours]
        )
    sheet = contact_sheet(queries, neighbours, title=title)
    with atomic_file(path) as file:
        sheet.save(file, format="PNG")
    return [*missing]


def _match(query: Entry | None, entry: Entry) -> bool | None:
    """Whether both images are of one class, None if a class is not known."""
    if query is None or query.class_name is None or entry.class_name is None:
        return None
    return query.class_name == entry.class_name
