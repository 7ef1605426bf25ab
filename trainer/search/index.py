"""An index in memory: the images nearest to an embedding, or to an image that it holds."""

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
      row: its place there.
      source_id: its name.
      split: None where it has none.
      label: UNKNOWN_LABEL where it is not known.
      class_name: None where it is not known.
    """

    row: int
    source_id: str
    split: str | None
    label: int
    class_name: str | None


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An image near another.

    Attributes:
      entry: the image.
      distance: squared Euclidean, 0 to 4; the cosine of the angle between them is 1 - distance / 2.
    """

    entry: Entry
    distance: float


class SearchIndex:
    """A loaded index; it does not change, and may be used from several threads at once.

    Attributes:
      info: what is known of it.
      class_names: of its images, sorted.
      splits: of its images, sorted.
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
          directory: of the index.
          threads: that FAISS takes for many queries at once, at most; by default one a core. A few
            queries are answered in the thread that asks.

        Raises:
          UsageError: there is none, or it is damaged.
        """
        return cls(*index_files.read(directory), threads=threads)

    def __len__(self) -> int:
        return len(self._contents.rows)

    def entry(self, source_id: str) -> Entry:
        """The image of this source id; raises UsageError where there is none."""
        found = self.find(source_id)
        if found is None:
            raise UsageError(f"source_id {source_id}: not in index {self.info.directory}")
        return found

    def find(self, source_id: str) -> Entry | None:
        """The image of this source id, None where there is none."""
        try:
            row = pc.index(self._contents.rows["source_id"], source_id).as_py()
        except UnicodeEncodeError:  # a command line need not be UTF-8, the index is
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
        """Raises UsageError where no image is of that class, or of that split."""
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
        """The images nearest to each of some embeddings.

        Among all images an approximate index answers with the recall that was measured; among those
        of a class or split, the answer is exact.

        Args:
          queries: [Q, D], of unit length.
          neighbours: how many, 1 or more.
          class_name: only of this class.
          split: only of this split.

        Returns:
          For each query its neighbours, nearest first, in the order of the rows where distances are
          equal; fewer than asked for only where there are no more.

        Raises:
          UsageError: no image is of that class, or of that split.
          ValueError: queries of another shape; neighbours below 1.
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
        """The other images nearest to one of the index; arguments and errors as `nearest`.

        Raises:
          UsageError: also where no image has that source id.
        """
        row = self.entry(source_id).row
        return self._nearest(self.vector(row)[None], neighbours, row, class_name, split)[0]

    def _nearest(
        self,
        queries: np.ndarray,
        neighbours: int,
        itself: int | None,
        class_name: str | None,
        split: str | None,
    ) -> list[list[Neighbour]]:
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.info.dim:
            raise ValueError(f"queries are {list(queries.shape)}, must be [Q, {self.info.dim}]")
        if neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}, must be at least 1")
        require_unit_length(queries, "queries")
        only = self._rows_of(class_name, split)
        k = neighbours + (itself is not None)
        found = self._among(queries, k, only) if only is not None else self._of_all(queries, k)
        answers = []
        for rows, distances in found:
            others = rows != itself if itself is not None else np.ones(len(rows), bool)
            rows, distances = rows[others][:neighbours], distances[others][:neighbours]
            entries = self.entries(rows.tolist())
            answers.append(list(map(Neighbour, entries, distances.tolist())))
        return answers

    def _among(
        self, queries: np.ndarray, k: int, only: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows and distances of each query, among the rows [n], ascending."""
        places, distances = exact(self._contents.vectors[only], queries, k, threads=self._threads)
        return list(zip(only[places], distances, strict=True))

    def _of_all(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows and distances of each query, among all."""
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
            else:  # some rows no path of a graph leads to, and clusters can be small
                answers.append(tuple(x[0] for x in exact(vectors, query[None], k, threads=1)))
        return answers

    def _rows_of(self, class_name: str | None, split: str | None) -> np.ndarray | None:
        """Rows that a filter leaves, ascending; None without a filter."""
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
                f"{column} {value!r}: no image of index {self.info.directory} is of it"
                + (f"; there is {', '.join(map(repr, near))}" if near else "")
            )
        return self._columns[column]
