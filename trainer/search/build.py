"""Makes an index of embeddings, and adds embeddings to one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.search import faiss_index, index_files
from trainer.search.collect import New, collect
from trainer.search.exact import available_cores
from trainer.search.recall import QUERIES, Recall, measure
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings

TARGET = 0.95  # recall that the setting of an approximate index must reach
GROWN = 1.1  # times the rows at which recall was measured; then it is measured again
FEWEST_QUERIES = 100  # that recall is measured with


def build(
    *,
    directory: str,
    embeddings_dirs: Sequence[str],
    kind: str | None = None,
    target: float = TARGET,
    overwrite: bool = False,
    threads: int | None = None,
) -> index_files.IndexInfo:
    """Makes an index of one or several collections of embeddings.

    Of images with one source id the first counts; one that has another embedding, class or split
    than the first is left out, and listed. The rows are in the order of the collections, except
    those of an approximate index that its recall was measured with: they come last.

    Args:
      directory: of the index, on a local disk.
      embeddings_dirs: what `pipeline.embed` wrote, one or more.
      kind: "flat", "hnsw" or "ivfpq"; by default, by the number of images.
      target: recall of an approximate index.
      overwrite: whether to replace an index that is there.
      threads: FAISS's, at most; by default one a core.

    Returns:
      What was written. No embeddings: an index of no rows.

    Raises:
      UsageError: an index is there, or something else; embeddings cannot be read or are of several
        models, or too few for this kind.
    """
    threads = threads or available_cores()
    infos = [embeddings.load_info(each) for each in embeddings_dirs]
    first = infos[0]
    index_files.require_ours(directory)
    with index_files.writing(directory):
        if index_files.is_finished(directory) and not overwrite:
            raise UsageError(
                f"index {directory}: there is one already; `add` to it, or build with --overwrite"
            )
        nothing = np.empty((0, first.dim), np.float32)
        with Progress() as progress:
            new = collect(
                infos,
                f"embeddings {first.directory}",
                first.model,
                nothing,
                index_files.ROWS_SCHEMA.empty_table(),
                progress,
            )
            num = len(new.vectors)
            kind = kind or faiss_index.choose_kind(num, first.dim)
            faiss_index.require_possible(kind, num, first.dim)
            progress.update(f"training {kind} on {num:,} images")
            contents = index_files.Contents(
                faiss_index.make(kind, new.vectors), nothing, index_files.ROWS_SCHEMA.empty_table()
            )
            contents, recall = _grow(contents, new, target, threads, progress, measured=None)
        info = index_files.IndexInfo(
            directory=directory,
            model=first.model,
            dim=first.dim,
            num_rows=num,
            kind=kind,
            recall=recall,
            inputs=new.inputs,
        )
        return index_files.commit(info, contents, new.left_out)


def add(
    *, directory: str, embeddings_dirs: Sequence[str], threads: int | None = None
) -> index_files.IndexInfo:
    """Adds embeddings to an index, without building it again.

    An image whose source id is in the index stays as it is there; where its embedding, class or
    split differs it is counted and listed as left out. The index is as before until all is in. Of
    an approximate one, recall is measured again when it has grown by a tenth since.

    Args:
      directory: of the index.
      embeddings_dirs: what `pipeline.embed` wrote, by the same model.
      threads: FAISS's, at most; by default one a core.

    Returns:
      What was written; where nothing was new, what is there and was not written again.

    Raises:
      UsageError: no index there, or embeddings that cannot be read or are of another model.
    """
    threads = threads or available_cores()
    infos = [embeddings.load_info(each) for each in embeddings_dirs]
    index_files.load_info(directory)  # before a folder is made for the lock
    with index_files.writing(directory), Progress() as progress:
        info, before = index_files.read(directory)
        of = f"index {directory}"
        new = collect(infos, of, info.model, before.vectors, before.rows, progress)
        inputs = [*info.inputs, *new.inputs]
        if not len(new.rows) and not new.left_out:
            return dataclasses.replace(info, inputs=inputs)
        contents, recall = _grow(
            before,
            new,
            info.recall.target if info.recall else TARGET,
            threads,
            progress,
            measured=info.recall,
        )
        info = dataclasses.replace(
            info,
            num_rows=len(contents.rows),
            recall=recall,
            inputs=inputs,
        )
        return index_files.commit(info, contents, new.left_out)


def _grow(
    contents: index_files.Contents,
    new: New,
    target: float,
    threads: int,
    progress: Progress,
    *,
    measured: Recall | None,
) -> tuple[index_files.Contents, Recall | None]:
    """Appends rows, and measures an approximate index where that is due.

    Its queries are rows drawn from the new ones, put in last, when all others are in.
    """
    index, vectors, rows = contents.index, new.vectors, new.rows
    before = contents.vectors  # of flat and hnsw, no longer there once a row is added
    num = len(contents.rows) + len(vectors)
    approximate_kind = faiss_index.kind_of(index) != faiss_index.FLAT
    due = len(vectors) > 1 and (
        measured is None or (num >= GROWN * measured.num_rows and len(vectors) >= FEWEST_QUERIES)
    )
    queries = 0
    if approximate_kind and due:
        queries = min(QUERIES, len(vectors) // 2)
        last = np.random.default_rng(0).choice(len(vectors), queries, replace=False)
        order = np.concatenate([np.delete(np.arange(len(vectors)), last), np.sort(last)])
        vectors, rows = vectors[order], rows.take(order)

    def added(rows: int) -> None:
        progress.update(f"added {rows:,} of {len(vectors):,} images")

    held_back = len(vectors) - queries
    faiss_index.add(index, vectors[:held_back], added)
    recall = measured
    if queries:
        progress.update(f"measuring recall with {queries:,} images")
        recall = measure(
            index,
            _all_vectors(index, before, vectors[:held_back]),
            vectors[held_back:],
            target=target,
            threads=threads,
        )
        faiss_index.add(index, vectors[held_back:], lambda _: None)
    return (
        index_files.Contents(
            index,
            _all_vectors(index, before, vectors),
            pa.concat_tables([contents.rows, rows]).combine_chunks(),
        ),
        recall,
    )


def _all_vectors(index: Any, before: np.ndarray, new: np.ndarray) -> np.ndarray:
    held = faiss_index.held(index)
    return np.concatenate([before, new]) if held is None else held
