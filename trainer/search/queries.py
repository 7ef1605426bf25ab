"""What is asked: image files, or images of the index; each with its answer, as they come."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.export.embedder import BATCH, Embedder
from trainer.search.answers import Answer
from trainer.search.index import SearchIndex
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import ModelCard
from tripletmill.images import HEAD_BYTES, BadImage, require_image
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of each query.

    Attributes:
      neighbours: how many, 1 or more.
      class_name: only of this class, if any.
      split: only of this split, if any.
    """

    neighbours: int = 10
    class_name: str | None = None
    split: str | None = None


def image_files(paths: Sequence[str]) -> list[str]:
    """Files, and those below folders, sorted; without hidden ones.

    Raises:
      UsageError: a folder without a file, or one that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"image {error.filename}: {error.strerror}") from error

    found = []
    for path in paths:
        storage.require_local(path, "image")
        if not os.path.isdir(path):
            found.append(path)
            continue
        files = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path, onerror=refuse)
            for name in names
            if not _is_hidden(os.path.relpath(os.path.join(folder, name), path))
        ]
        if not files:
            raise UsageError(f"image {path}: no file in this folder")
        found += sorted(files)
    return found


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split(os.sep))


def require_same_model(index: SearchIndex, card: ModelCard) -> None:
    """Raises UsageError unless a model is the one that made the index's embeddings."""
    if card.fingerprint != index.info.model:
        raise UsageError(
            f"model {card.directory}: is {card.fingerprint[:12]}, but index {index.info.directory}"
            f" is of model {index.info.model[:12]}; search with that one, or embed and build again"
        )


def by_source_id(
    index: SearchIndex, source_ids: Sequence[str], wanted: Wanted
) -> Iterator[tuple[Answer, None]]:
    """An answer for each; those that are not in the index have a problem."""
    for source_id in source_ids:
        entry = index.find(source_id)
        if entry is None:
            yield Answer(source_id, problem=f"not in index {index.info.directory}"), None
        else:
            found = index.nearest_of(source_id, **dataclasses.asdict(wanted))
            yield Answer(source_id, found, entry), None


def by_image(
    index: SearchIndex, embedder: Embedder, files: Sequence[str], wanted: Wanted
) -> Iterator[tuple[Answer, bytes | None]]:
    """An answer for each image file, and its bytes; a bad one has a problem."""
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        read = [_read(path) for path in batch]
        good = [data for data in read if isinstance(data, bytes)]
        embedded = iter(embedder.embed_all(good))
        results = [next(embedded) if isinstance(data, bytes) else data for data in read]
        vectors = [each for each in results if isinstance(each, np.ndarray)]
        queries = np.stack(vectors) if vectors else np.empty((0, index.info.dim), np.float32)
        found = iter(index.nearest(queries, **dataclasses.asdict(wanted)))
        for path, data, result in zip(batch, read, results, strict=True):
            if isinstance(result, BadImage):
                yield Answer(path, problem=result.reason), None
            else:
                assert isinstance(data, bytes)
                yield Answer(path, next(found)), data


def _read(path: str) -> bytes | BadImage:
    try:
        with storage.open_read(path) as file:
            head = file.read(HEAD_BYTES)
            require_image(head)  # a film among the images need not fit into memory
            return head + file.read()
    except BadImage as error:
        return error
    except OSError as error:
        problem = storage.problem_of_file(error)
        if problem is None:
            raise
        return BadImage(problem)
