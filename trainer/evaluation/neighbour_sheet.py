"""The contact sheet of an evaluation: queries and their nearest neighbours."""

from collections.abc import Sequence

import numpy as np

from trainer.evaluation.inference import SplitImages, images_as_evaluated
from trainer.evaluation.measure import Embedded
from trainer.pictures.contact_sheet import Tile, choose_queries, contact_sheet
from trainer.retrieval.matches import Matches
from trainer.retrieval.neighbours import nearest_neighbours
from trainer.runs.write_errors import naming_write_errors
from tripletmill.storage.storage import atomic_file


def _write_sheet(
    path: str,
    found: Sequence[Embedded],
    num_queries: int,
    num_neighbours: int,
    *,
    group: str | None,
) -> None:
    """Of queries and, where that is another split, the gallery."""
    of, among = found[0], found[-1]
    places = choose_queries(of.labels, num=num_queries)
    queries = of.rows[places]
    neighbours = [
        among.rows[nearest] for nearest in _nearest(of, among, places, num_neighbours, group)
    ]
    if among is of:
        shown = pictures = _pictures(of.images, np.concatenate([queries, *neighbours]))
    else:
        shown = _pictures(of.images, queries)
        pictures = _pictures(among.images, np.concatenate(neighbours))
    index, searched = of.images.index, among.images.index
    title = index.split if among is of else f"{index.split} in {searched.split}"
    names = index.class_names()

    def neighbour(row: int, query: int) -> Tile:
        label = int(searched.label[row])
        return Tile(pictures[row], names[label], bool(label == index.label[query]))

    sheet = contact_sheet(
        [Tile(shown[query], names[int(index.label[query])]) for query in queries.tolist()],
        [
            [neighbour(row, query) for row in rows.tolist()]
            for query, rows in zip(queries.tolist(), neighbours, strict=True)
        ],
        title=f"{index.info.name}, {title}: queries and their nearest neighbours",
    )
    with naming_write_errors(path), atomic_file(path) as file:
        sheet.save(file, format="PNG")


def _nearest(
    of: Embedded, among: Embedded, queries: np.ndarray, num: int, group: str | None
) -> list[np.ndarray]:
    """Places of each query's nearest that count: not those of its class and its group."""
    same = among is of
    rows = nearest_neighbours(
        of.embeddings,
        num,
        queries=queries,
        gallery=None if same else among.embeddings,
        protocol=Matches(
            of.labels, of.groups(group), None if same else (among.labels, among.groups(group))
        ),
    ).rows
    return [places[places >= 0] for places in rows]


def _pictures(images: SplitImages, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Images [S, S, 3] uint8 by row."""
    shown, rows = images_as_evaluated(images, np.unique(rows))
    return dict(zip(rows.tolist(), shown, strict=True))
