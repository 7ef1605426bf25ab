"""Builds an index from embeddings, and adds embeddings to an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.search import faiss_index, index_files
from trainer.search.exact import require_unit_length
from trainer.search.recall import QUERIES, Recall, measure
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings

TARGET_RECALL = 0.95  # the default for approximate indexes
# Recall is measured again when the index has grown by this factor since the last measurement, and
# the rows that are added suffice for this many queries.
GROWTH = 1.1
FEWEST_QUERIES = 100


def build(
    *,
    directory: str,
    embeddings_dirs: Sequence[str],
    kind: str | None = None,
    target: float = TARGET_RECALL,
    overwrite: bool = False,
) -> index_files.IndexInfo:
    """Builds an index of one or several collections of embeddings.

    If several images have one source id, the first image is used. An image whose embedding, class
    or split differs from that of the first image is listed in left_out.jsonl. The rows are in the
    order of the collections, with one exception: the rows with which the recall of an approximate
    index was measured come last.

    Args:
      directory: folder of the index, on a local disk.
      embeddings_dirs: one or more folders that `pipeline.embed` wrote.
      kind: "flat", "hnsw" or "ivfpq". By default, the number of images decides.
      target: recall@10 that the search setting of an approximate index has to reach, in (0, 1].
      overwrite: whether an index that is already in the folder is replaced.

    Returns:
      What was written. Without embeddings, the index has no rows.

    Raises:
      UsageError: the folder already holds an index or foreign files. Or the embeddings cannot be
        read, are of several models, or are too few for this kind.
    """
    infos = [embeddings.load_info(each) for each in embeddings_dirs]
    first = infos[0]
    index_files.require_ours(directory)
    with index_files.writing(directory):
        if index_files.is_finished(directory) and not overwrite:
            raise UsageError(
                f"index {directory}: there is one already; `add` to it, or build with --overwrite"
            )
        _require_one_model(infos, f"embeddings {first.directory}", first.model, first.dim)
        no_vectors = np.empty((0, first.dim), np.float32)
        no_rows = index_files.ROWS_SCHEMA.empty_table()
        with Progress() as progress:
            new = _collect(infos, no_vectors, no_rows, progress)
            num = len(new.vectors)
            kind = kind or faiss_index.choose_kind(num, first.dim)
            faiss_index.require_possible(kind, num, first.dim)
            progress.update(f"training {kind} on {num:,} images")
            empty = index_files.Contents(faiss_index.make(kind, new.vectors), no_vectors, no_rows)
            contents, recall = _grow(empty, new, target, progress, measured=None)
        details = first.model, first.dim, num, kind, recall, new.inputs
        info = index_files.IndexInfo(directory, *details)
        return index_files.commit(info, contents, new.left_out)


def add(*, directory: str, embeddings_dirs: Sequence[str]) -> index_files.IndexInfo:
    """Adds embeddings to an index, without building it anew.

    If the source id of an image is already in the index, the index keeps the image that it has. The
    other image is counted and listed as left out if its embedding, class or split differs. Until
    everything is written, the index on disk stays as it was. The recall of an approximate index is
    measured again when the index has grown by a tenth since the last measurement.

    Args:
      directory: folder of the index.
      embeddings_dirs: folders that `pipeline.embed` wrote, with the model of the index.

    Returns:
      What was written. If no image was new and none was left out, nothing is written, and this
      describes the index that is there.

    Raises:
      UsageError: there is no index, or the embeddings cannot be read or are of another model.
    """
    infos = [embeddings.load_info(each) for each in embeddings_dirs]
    # `writing` makes the folder for its lock, so a folder that does not exist is refused before.
    index_files.load_info(directory)
    with index_files.writing(directory), Progress() as progress:
        info, before = index_files.read(directory)
        _require_one_model(infos, f"index {directory}", info.model, before.vectors.shape[1])
        new = _collect(infos, before.vectors, before.rows, progress)
        inputs = [*info.inputs, *new.inputs]
        if not len(new.rows) and not new.left_out:
            return dataclasses.replace(info, inputs=inputs)
        target = info.recall.target if info.recall else TARGET_RECALL
        contents, recall = _grow(before, new, target, progress, measured=info.recall)
        info = dataclasses.replace(info, num_rows=len(contents.rows), recall=recall, inputs=inputs)
        return index_files.commit(info, contents, new.left_out)


def summary(info: index_files.IndexInfo, num_inputs: int) -> list[str]:
    """Lines of text that tell people what was built or added.

    Args:
      info: the index after the change.
      num_inputs: the number of collections that the change has read.
    """
    how = "exact" if info.recall is None else "approximate"
    inputs = info.inputs[len(info.inputs) - num_inputs :]
    lines = [
        f"index {info.directory}: {info.num_rows:,} images, D = {info.dim}, {info.kind} ({how}),"
        f" {sum(info.files.values()) / 1e6:,.1f} MB",
        *(f"  {_input_name(each['input'])}: {_input_counts(each)}" for each in inputs),
    ]
    if any(each["left_out"] for each in inputs):
        lines.append(
            f"  left out: {info.path('left_out')}; build again to have these images in the index"
        )
    if info.recall is not None:
        lines += _recall_lines(info.recall, info.num_rows)
    elif info.num_rows > faiss_index.FLAT_ROWS and info.kind == faiss_index.FLAT:
        lines.append(
            f"  above {faiss_index.FLAT_ROWS:,} images hnsw is faster; build again to have it"
        )
    return lines


def _recall_lines(recall: Recall, num_rows: int) -> list[str]:
    measured = ", ".join(f"{value}: {share:.3f}" for value, share in recall.by_setting.items())
    lines = [
        f"  recall@10 against exact search, {recall.num_queries:,} images before they were added to"
        f" {recall.num_rows:,}: {recall.parameter} {measured}",
        f"  {recall.parameter} = {recall.setting}, for {recall.target:g}",
    ]
    if not recall.reached:
        lines.append(
            f"  warning: no {recall.parameter} reaches {recall.target:g}; try another kind"
        )
    if num_rows > GROWTH * recall.num_rows + QUERIES:
        lines.append(
            f"  {num_rows - recall.num_rows:,} images were added since; recall is measured again"
            f" when {FEWEST_QUERIES} or more are added at once"
        )
    return lines


def _input_name(given: Mapping[str, Any]) -> str:
    return " ".join(str(given[key]) for key in ("kind", "name") if given.get(key)) or "embeddings"


def _input_counts(counts: Mapping[str, int]) -> str:
    text = f"{counts['images']:,} images, {counts['added']:,} added"
    if counts["there_already"]:
        text += f", {counts['there_already']:,} there already"
    if counts["left_out"]:
        text += f", {counts['left_out']:,} left out (their source id is there, but they differ)"
    return text


@dataclasses.dataclass(frozen=True, eq=False)
class _New:
    """Embeddings that an index does not have yet.

    Attributes:
      vectors: float32 [M, D].
      rows: table of index_files.ROWS_SCHEMA, [M].
      inputs: one entry of `IndexInfo.inputs` for each collection.
      left_out: one entry of left_out.jsonl for each image that was left out.
    """

    vectors: np.ndarray
    rows: pa.Table
    inputs: list[dict[str, Any]]
    left_out: list[dict[str, Any]]


def _require_one_model(
    infos: Sequence[embeddings.EmbeddingsInfo], wanted: str, model: str, dim: int
) -> None:
    for info in infos:
        if (info.model, info.dim) != (model, dim):
            raise UsageError(
                f"embeddings {info.directory}: of model {info.model[:12]} (D = {info.dim}), but"
                f" {wanted} is of model {model[:12]} (D = {dim}); embed all with one model"
            )


def _collect(
    infos: Sequence[embeddings.EmbeddingsInfo],
    known_vectors: np.ndarray,
    known_rows: pa.Table,
    progress: Progress,
) -> _New:
    """Reads collections, except for images whose source id is known or has occurred before."""
    vectors, tables = _read(infos, known_vectors.shape[1], progress)
    rows = pa.concat_tables([known_rows, *tables]).combine_chunks()
    known = len(known_rows)
    first = _first_with_its_id(rows["source_id"])[known:]
    is_new = first == np.arange(known, len(rows))
    repeated = np.flatnonzero(~is_new)
    columns = rows.select(["split", "label", "class"])
    values = columns.take(known + repeated).to_pylist()
    first_values = columns.take(first[repeated]).to_pylist()
    differs = np.array(
        [one != other for one, other in zip(values, first_values, strict=True)], bool
    )
    for place, row in enumerate(first[repeated]):
        vector = known_vectors[row] if row < known else vectors[row - known]
        differs[place] |= not np.array_equal(vector, vectors[repeated[place]])
    changed = repeated[differs]

    inputs, left_out, start = [], [], 0
    for info in infos:
        end = start + info.num_rows
        added = int(np.count_nonzero(is_new[start:end]))
        changed_here = changed[(changed >= start) & (changed < end)]
        inputs.append(
            {
                "input": dict(info.input),
                "images": info.num_rows,
                "added": added,
                "there_already": info.num_rows - added - len(changed_here),
                "left_out": len(changed_here),
            }
        )
        for source_id in rows["source_id"].take(known + changed_here).to_pylist():
            reason = "its source id is in the index with another embedding, class or split"
            left_out.append({"source_id": source_id, "reason": reason})
        start = end
    if not is_new.all():  # otherwise a copy would only take memory
        vectors = vectors[is_new]
    return _New(vectors, rows.take(known + np.flatnonzero(is_new)), inputs, left_out)


def _read(
    infos: Sequence[embeddings.EmbeddingsInfo], dim: int, progress: Progress
) -> tuple[np.ndarray, list[pa.Table]]:
    """All embeddings of the collections, float32 [N, D], and their rows in one table per shard."""
    total = sum(info.num_rows for info in infos)
    vectors = np.empty((total, dim), np.float32)
    tables = []
    done = 0
    for info in infos:
        for shard in embeddings.iter_shards(info.directory):
            vectors[done : done + len(shard)] = shard.embedding
            done += len(shard)
            tables.append(_rows_of(shard))
            progress.update(f"read {done:,} of {total:,} embeddings")
        require_unit_length(vectors[done - info.num_rows : done], f"embeddings {info.directory}")
    return vectors, tables


def _rows_of(shard: embeddings.Embeddings) -> pa.Table:
    label = pa.array(shard.label, mask=shard.label == embeddings.UNKNOWN_LABEL)
    columns = [shard.source_id, shard.split, label, shard.class_name]
    names = index_files.ROWS_SCHEMA.names
    return pa.table(dict(zip(names, columns, strict=True)), index_files.ROWS_SCHEMA)


def _first_with_its_id(source_ids: pa.ChunkedArray) -> np.ndarray:
    """For each row [N], the first row with its source id."""
    encoded = source_ids.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()  # numbered in the order in which they first occur
    first = np.unique(codes, return_index=True)[1]
    return first[codes]


def _grow(
    contents: index_files.Contents,
    new: _New,
    target: float,
    progress: Progress,
    *,
    measured: Recall | None,
) -> tuple[index_files.Contents, Recall | None]:
    """Appends rows. Measures the recall of an approximate index if a measurement is due.

    The queries of the measurement are drawn from the new rows. They are added last, after the
    measurement, because a row of an index finds its neighbours more easily than a new image.
    """
    index, vectors, rows = contents.index, new.vectors, new.rows
    before = contents.vectors  # for flat and hnsw this is FAISS's memory, invalid after an `add`
    num = len(contents.rows) + len(vectors)
    due = len(vectors) > 1 and (
        measured is None or (num >= GROWTH * measured.num_rows and len(vectors) >= FEWEST_QUERIES)
    )
    queries = 0
    if due and faiss_index.kind_of(index) != faiss_index.FLAT:
        queries = min(QUERIES, len(vectors) // 2)
        last = np.random.default_rng(0).choice(len(vectors), queries, replace=False)
        order = np.concatenate([np.delete(np.arange(len(vectors)), last), np.sort(last)])
        vectors, rows = vectors[order], rows.take(order)
    num_first = len(vectors) - queries

    def report(added: int) -> None:
        progress.update(f"added {added:,} of {len(vectors):,} images")

    faiss_index.add(index, vectors[:num_first], report)
    recall = measured
    if queries:
        progress.update(f"measuring recall with {queries:,} images")
        known = _all_vectors(index, before, vectors[:num_first])
        recall = measure(index, known, vectors[num_first:], target=target)
        faiss_index.add(index, vectors[num_first:], lambda _: None)
    all_rows = pa.concat_tables([contents.rows, rows]).combine_chunks()
    return index_files.Contents(index, _all_vectors(index, before, vectors), all_rows), recall


def _all_vectors(index: Any, before: np.ndarray, new: np.ndarray) -> np.ndarray:
    stored = faiss_index.stored_vectors(index)
    return np.concatenate([before, new]) if stored is None else stored
