"""The contact sheet of an evaluation: queries and their nearest neighbours."""

import numpy as np

from trainer.evaluation.inference import SplitImages, images_as_evaluated
from trainer.evaluation.measure import Embedded
from trainer.pictures.contact_sheet import Tile, choose_queries, contact_sheet
from trainer.retrieval.matches import Matches
from trainer.retrieval.neighbours import nearest_neighbours
from trainer.runs.write_errors import naming_write_errors
from tripletmill.storage.storage import atomic_file


def write_sheet(
    path: str,
    queries: Embedded,
    gallery: Embedded,
    num_queries: int,
    num_neighbours: int,
    *,
    group: str | None,
) -> None:
    """Writes a PNG with some queries, drawn at random, and their nearest neighbours.

    Args:
      path: of the file.
      queries: images of which the queries are drawn.
      gallery: images that are searched; may be `queries` itself.
      num_queries: rows of the sheet; fewer where there are fewer images.
      num_neighbours: neighbours in each row; fewer where there are fewer images.
      group: column of the index. Rows that have a query's class and its group are left out.
    """
    places = choose_queries(queries.labels, num=num_queries)
    query_rows = queries.rows[places].tolist()
    nearest = nearest_places(queries, gallery, places, num_neighbours, group)
    neighbour_rows = [gallery.rows[each].tolist() for each in nearest]
    query_pictures = _pictures(queries.images, queries.rows[places])
    gallery_pictures = _pictures(gallery.images, gallery.rows[np.concatenate(nearest)])
    query_index, gallery_index = queries.images.index, gallery.images.index
    title = query_index.split
    if gallery is not queries:
        title += f" in {gallery_index.split}"
    names = query_index.class_names()

    def neighbour(row: int, query: int) -> Tile:
        label = int(gallery_index.label[row])
        return Tile(gallery_pictures[row], names[label], bool(label == query_index.label[query]))

    sheet = contact_sheet(
        [Tile(query_pictures[row], names[int(query_index.label[row])]) for row in query_rows],
        [
            [neighbour(row, query) for row in rows]
            for query, rows in zip(query_rows, neighbour_rows, strict=True)
        ],
        title=f"{query_index.info.name}, {title}: queries and their nearest neighbours",
    )
    with naming_write_errors(path), atomic_file(path) as file:
        sheet.save(file, format="PNG")


def nearest_places(
    queries: Embedded, gallery: Embedded, places: np.ndarray, num: int, group: str | None
) -> list[np.ndarray]:
    """Finds the nearest neighbours of some queries, without the rows that do not count.

    Args:
      queries: embedded images.
      gallery: embedded images that are searched; may be `queries` itself.
      places: [q], places among `queries`.
      num: number of neighbours of each query.
      group: column of the index. Rows that have a query's class and its group are left out.

    Returns:
      For each query the places of its neighbours among `gallery`, nearest first: [num], or fewer
      where fewer are left.
    """
    within = gallery is queries
    searched = None if within else (gallery.labels, gallery.groups(group))
    neighbours = nearest_neighbours(
        queries.embeddings,
        num,
        queries=places,
        gallery=None if within else gallery.embeddings,
        matches=Matches(queries.labels, queries.groups(group), searched),
    )
    return [rows[rows >= 0] for rows in neighbours.rows]


def _pictures(images: SplitImages, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Images [S, S, 3] uint8 by row."""
    pictures, rows = images_as_evaluated(images, np.unique(rows))
    return dict(zip(rows.tolist(), pictures, strict=True))
