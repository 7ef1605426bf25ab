"""Embeddings from disk, without those that an index has already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.search import index_files
from trainer.search.exact import require_unit_length
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings


@dataclasses.dataclass(frozen=True, eq=False)
class New:
    """Embeddings that an index has not.

    Attributes:
      vectors: [M, D] float32.
      rows: index_files.ROWS_SCHEMA, [M].
      inputs: for the info.
      left_out: for left_out.jsonl.
    """

    vectors: np.ndarray
    rows: pa.Table
    inputs: list[dict[str, Any]]
    left_out: list[dict[str, Any]]


def collect(
    infos: Sequence[embeddings.EmbeddingsInfo],
    of: str,
    model: str,
    known_vectors: np.ndarray,
    known_rows: pa.Table,
    progress: Progress,
) -> New:
    """Reads collections, and leaves out what is known or came before."""
    dim = known_vectors.shape[1]
    for info in infos:
        if (info.model, info.dim) != (model, dim):
            raise UsageError(
                f"embeddings {info.directory}: of model {info.model[:12]} (D = {info.dim}), but"
                f" {of} is of model {model[:12]} (D = {dim}); embed all with one model"
            )
    total = sum(info.num_rows for info in infos)
    vectors = np.empty((total, dim), np.float32)
    tables = [known_rows]
    done = 0
    for info in infos:
        for shard in embeddings.iter_shards(info.directory):
            vectors[done : done + len(shard)] = shard.embedding
            done += len(shard)
            tables.append(_rows_of(shard))
            progress.update(f"read {done:,} of {total:,} embeddings")
        require_unit_length(vectors[done - info.num_rows : done], f"embeddings {info.directory}")
    rows = pa.concat_tables(tables).combine_chunks()

    known = len(known_rows)
    first = _first_of_its_id(rows["source_id"])[known:]
    is_new = first == np.arange(known, known + total)
    again = np.flatnonzero(~is_new)
    differs = _differ(rows, again + known, first[again])
    for place, there in enumerate(first[again]):
        vector = known_vectors[there] if there < known else vectors[there - known]
        differs[place] |= not np.array_equal(vector, vectors[again[place]])
    changed = again[differs]

    inputs, left_out, start = [], [], 0
    for info in infos:
        end = start + info.num_rows
        added = int(np.count_nonzero(is_new[start:end]))
        other = changed[(changed >= start) & (changed < end)]
        inputs.append(
            {
                "input": dict(info.input),
                "images": info.num_rows,
                "added": added,
                "there_already": info.num_rows - added - len(other),
                "left_out": len(other),
            }
        )
        for source_id in rows["source_id"].take(known + other).to_pylist():
            reason = "its source id is in the index with another embedding, class or split"
            left_out.append({"source_id": source_id, "reason": reason})
        start = end
    if not is_new.all():
        vectors = vectors[is_new]
    return New(vectors, rows.take(known + np.flatnonzero(is_new)), inputs, left_out)


def _rows_of(shard: embeddings.Embeddings) -> pa.Table:
    unknown = shard.label == embeddings.UNKNOWN_LABEL
    columns = {
        "source_id": pa.array(shard.source_id, pa.string()),
        "split": pa.array(shard.split, pa.string()),
        "label": pa.array(shard.label, pa.int64(), mask=unknown),
        "class": pa.array(shard.class_name, pa.string()),
    }
    return pa.table(columns, index_files.ROWS_SCHEMA)


def _first_of_its_id(source_ids: pa.ChunkedArray) -> np.ndarray:
    """For each row [N] the first row with its source id."""
    encoded = source_ids.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()  # in the order in which they first occur
    first = np.unique(codes, return_index=True)[1]
    return first[codes] if len(codes) else np.empty(0, np.int64)


def _differ(rows: pa.Table, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether rows have another split, label or class than others, bool [n]."""
    columns = rows.select(["split", "label", "class"])
    pairs = zip(columns.take(some).to_pylist(), columns.take(others).to_pylist(), strict=True)
    return np.array([one != other for one, other in pairs], bool)
