"""A loaded index, which finds the images nearest to an embedding or to an image of the index."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.search import index_files
from trainer.search.exact import available_cores, closest, exact, require_unit_length
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

    def __init__(
        self,
        info: index_files.IndexInfo,
        contents: index_files.Contents,
        *,
        threads: int | None = None,
    ) -> None:
        self.info = info
        self._contents = contents
        self._threads = threads or available_cores()
        rows = contents.rows
        self._columns = {
            "split": rows["split"].combine_chunks().dictionary_encode(),
            "class": rows["class"].combine_chunks().dictionary_encode(),
        }
        self.class_names = sorted(self._columns["class"].dictionary.to_pylist())
        self.splits = sorted(self._columns["split"].dictionary.to_pylist())

    @classmethod
    def load(cls, directory: str, *, threads: int | None = None) -> SearchIndex:
        """Reads an index.

        Args:
          directory: folder of the index.
          threads: largest number of threads that FAISS uses for many queries at once. By default,
            one for each core. A few queries are answered in the calling thread.

        Raises:
          UsageError: there is no index, or it is damaged.
        """
        return cls(*index_files.read(directory), threads=threads)

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

    def vector(self, row: int) -> np.ndarray:
        """The embedding of a row, float32 [D]."""
        return np.array(self._contents.vectors[row])

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
        return self._nearest(queries, neighbours, None, class_name, split)

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
        return self._nearest(self.vector(row)[None], neighbours, row, class_name, split)[0]

    def _nearest(
        self,
        queries: np.ndarray,
        neighbours: int,
        query_row: int | None,
        class_name: str | None,
        split: str | None,
    ) -> list[list[Neighbour]]:
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.info.dim:
            raise ValueError(f"queries are {list(queries.shape)}, must be [Q, {self.info.dim}]")
        if neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}, must be at least 1")
        require_unit_length(queries, "queries")
        searched = self._rows_of(class_name, split)
        k = neighbours + (query_row is not None)
        if searched is None:
            nearest = self._search_all(queries, k)
        else:
            nearest = self._search_rows(queries, k, searched)
        answers = []
        for rows, distances in nearest:
            others = rows != query_row if query_row is not None else np.ones(len(rows), bool)
            rows, distances = rows[others][:neighbours], distances[others][:neighbours]
            entries = self.entries(rows.tolist())
            answers.append(list(map(Neighbour, entries, distances.tolist())))
        return answers

    def _search_rows(
        self, queries: np.ndarray, k: int, searched: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query, the nearest of some rows [n], given in ascending order, and distances."""
        vectors = self._contents.vectors[searched]
        places, distances = exact(vectors, queries, k, threads=self._threads)
        return list(zip(searched[places], distances, strict=True))

    def _search_all(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query, the nearest of all rows, and their distances."""
        index, vectors, recall = self._contents.index, self._contents.vectors, self.info.recall
        if recall is None:
            return list(zip(*exact(vectors, queries, k, threads=self._threads), strict=True))
        k = min(k, len(vectors))
        answers = []
        proposed = propose(index, queries, k, recall.setting, threads=self._threads)
        for query, rows in zip(queries, proposed, strict=True):
            rows = rows[rows >= 0]
            if len(rows) >= k:
                answers.append(closest(vectors, query, rows, k))
            else:  # a graph may have no path to a row, and clusters can be small
                [nearest], [distances] = exact(vectors, query[None], k, threads=1)
                answers.append((nearest, distances))
        return answers

    def _rows_of(self, class_name: str | None, split: str | None) -> np.ndarray | None:
        """The rows of this class and split, ascending. None if neither is given."""
        wanted = {"class": class_name, "split": split}
        masks = [
            pc.fill_null(pc.equal(self._column(column, value), value), False)
            for column, value in wanted.items()
            if value is not None
        ]
        if not masks:
            return None
        return np.flatnonzero(np.logical_and.reduce([mask.to_numpy(False) for mask in masks]))

    def _column(self, column: str, value: str) -> pa.DictionaryArray:
        names = self.class_names if column == "class" else self.splits
        if value not in names:
            near = difflib.get_close_matches(value, names, n=3) or names[:3]
            raise UsageError(
                f"{column} {value!r}: no image of index {self.info.directory} is of this {column}"
                + (f"; there is {', '.join(map(repr, near))}" if near else "")
            )
        return self._columns[column]
