"""A loaded index, which finds the images nearest to an embedding or to an image of the index."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.search import index_files
from trainer.search.exact import closest, exact, require_unit_length
from trainer.search.faiss_index import propose
from tripletmill.errors import UsageError
from tripletmill.formats.embeddings import UNKNOWN_LABEL


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image of an index.

    Attributes:
      row: number of its row, 0 to N - 1.
      source_id: its source id, unique in the index.
      split: its split, None if it has none.
      label: its label, UNKNOWN_LABEL if it is not known.
      class_name: name of its class, None if it is not known.
    """

    row: int
    source_id: str
    split: str | None
    label: int
    class_name: str | None


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An image that was found for a query.

    Attributes:
      entry: the image.
      distance: squared Euclidean distance to the query, 0 to 4. The cosine similarity is
        1 - distance / 2.
    """

    entry: Entry
    distance: float


class SearchIndex:
    """A loaded index. It does not change, and several threads may use it at once.

    Attributes:
      info: the content of index_info.json.
      class_names: the class names of the images, sorted.
      splits: the splits of the images, sorted.
    """

    def __init__(self, info: index_files.IndexInfo, contents: index_files.Contents) -> None:
        self.info = info
        self._contents = contents
        self._columns = {
            name: contents.rows[name].combine_chunks().dictionary_encode()
            for name in ("split", "class")
        }
        self.class_names = sorted(self._columns["class"].dictionary.to_pylist())
        self.splits = sorted(self._columns["split"].dictionary.to_pylist())

    @classmethod
    def load(cls, directory: str) -> SearchIndex:
        """Reads the index of a folder.

        Raises:
          UsageError: there is no index, or it is damaged.
        """
        return cls(*index_files.read(directory))

    def __len__(self) -> int:
        return len(self._contents.rows)

    def entry(self, source_id: str) -> Entry:
        """The image with this source id. Raises UsageError if there is none."""
        entry = self.find(source_id)
        if entry is None:
            raise UsageError(f"source_id {source_id}: not in index {self.info.directory}")
        return entry

    def find(self, source_id: str) -> Entry | None:
        """The image with this source id, None if there is none."""
        try:
            row = pc.index(self._contents.rows["source_id"], source_id).as_py()
        except UnicodeEncodeError:  # a name on the command line may be no UTF-8
            return None
        return self.entries([row])[0] if row >= 0 else None

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """The images of these rows, each 0 to N - 1."""
        columns = self._contents.rows.take(pa.array(rows, pa.int64())).to_pydict().values()
        return [
            Entry(int(row), source_id, split, UNKNOWN_LABEL if label is None else label, name)
            for row, source_id, split, label, name in zip(rows, *columns, strict=True)
        ]

    def check_filter(self, *, class_name: str | None = None, split: str | None = None) -> None:
        """Raises UsageError if no image is of this class, or if no image is of this split."""
        self._rows_of(class_name, split)

    def nearest(
        self,
        queries: np.ndarray,
        neighbours: int = 10,
        *,
        class_name: str | None = None,
        split: str | None = None,
    ) -> list[list[Neighbour]]:
        """The images nearest to each query.

        An approximate index searches all images with the recall that was measured. A search in a
        class or a split is always exact.

        Args:
          queries: floats [Q, D], of unit length.
          neighbours: number of neighbours, 1 or more.
          class_name: if given, only images of this class are searched.
          split: if given, only images of this split are searched.

        Returns:
          The neighbours of each query, nearest first. Neighbours at one distance are in the order
          of their rows. If fewer images are searched than neighbours are wanted, all are returned.

        Raises:
          UsageError: no image is of this class or of this split, or queries are longer than unit
            length.
          ValueError: `queries` has another shape, or `neighbours` is below 1.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.info.dim:
            raise ValueError(f"queries are {list(queries.shape)}, must be [Q, {self.info.dim}]")
        if neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}, must be at least 1")
        require_unit_length(queries, "queries")
        searched = self._rows_of(class_name, split)
        if searched is None and self.info.recall is not None:
            nearest = self._search_approximately(queries, neighbours, self.info.recall.setting)
        else:
            vectors = self._contents.vectors
            some = vectors if searched is None else vectors[searched]
            places, all_distances = exact(some, queries, neighbours)
            all_rows = places if searched is None else searched[places]
            nearest = list(zip(all_rows, all_distances, strict=True))
        return [
            list(map(Neighbour, self.entries(rows.tolist()), distances.tolist()))
            for rows, distances in nearest
        ]

    def nearest_of(
        self,
        source_id: str,
        neighbours: int = 10,
        *,
        class_name: str | None = None,
        split: str | None = None,
    ) -> list[Neighbour]:
        """The images nearest to an image of the index, without that image.

        Arguments, result and errors are those of `nearest`. In addition, UsageError is raised if no
        image has this source id.
        """
        row = self.entry(source_id).row
        # One more is searched for, because the image is usually its own nearest image.
        wanted = neighbours + 1 if neighbours > 0 else neighbours
        query = self._contents.vectors[[row]]
        [nearest] = self.nearest(query, wanted, class_name=class_name, split=split)
        return [each for each in nearest if each.entry.row != row][:neighbours]

    def _search_approximately(
        self, queries: np.ndarray, k: int, setting: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query, the nearest of all rows, and their distances."""
        vectors = self._contents.vectors
        k = min(k, len(vectors))
        answers = []
        proposed = propose(self._contents.index, queries, k, setting)
        for query, rows in zip(queries, proposed, strict=True):
            rows = rows[rows >= 0]
            if len(rows) >= k:
                answers.append(closest(vectors, query, rows, k))
            else:  # a graph may have no path to a row, and clusters can be small
                [nearest], [distances] = exact(vectors, query[None], k)
                answers.append((nearest, distances))
        return answers

    def _rows_of(self, class_name: str | None, split: str | None) -> np.ndarray | None:
        """The rows of this class and split, ascending. None if neither is given."""
        is_wanted = np.ones(len(self), bool)
        for column, value in (("class", class_name), ("split", split)):
            if value is not None:
                is_equal = pc.fill_null(pc.equal(self._column(column, value), value), False)
                is_wanted &= is_equal.to_numpy(zero_copy_only=False)
        return None if class_name is None and split is None else np.flatnonzero(is_wanted)

    def _column(self, column: str, value: str) -> pa.DictionaryArray:
        names = self.class_names if column == "class" else self.splits
        if value not in names:
            near = difflib.get_close_matches(value, names, n=3) or names[:3]
            raise UsageError(
                f"{column} {value!r}: no image of index {self.info.directory} is of this {column}"
                + (f"; there is {', '.join(map(repr, near))}" if near else "")
            )
        return self._columns[column]
