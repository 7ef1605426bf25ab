"""Answers queries one after another. A query is an image file or an image of the index."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.export.embedder import BATCH, Embedder
from trainer.search.answers import Answer
from trainer.search.index import SearchIndex
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import ModelCard, load_card
from tripletmill.images import HEAD_BYTES, BadImage, require_image
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which neighbours are wanted for each query.

    Attributes:
      neighbours: number of neighbours, 1 or more.
      class_name: if given, only images of this class are searched.
      split: if given, only images of this split are searched.
    """

    neighbours: int = 10
    class_name: str | None = None
    split: str | None = None


def image_files(paths: Sequence[str]) -> list[str]:
    """The given files, and all files below the given folders, sorted within each folder.

    Hidden files, and files in hidden folders, are left out.

    Raises:
      UsageError: a folder holds no file or cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"image {error.filename}: {error.strerror}") from error

    chosen = []
    for path in paths:
        storage.require_local(path, "image")
        if not os.path.isdir(path):
            chosen.append(path)
            continue
        files = []
        for folder, folders, names in os.walk(path, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
        if not files:
            raise UsageError(f"image {path}: no file in this folder")
        chosen += sorted(files)
    return chosen


def model_of(index: SearchIndex, model: str) -> ModelCard:
    """The card of the exported model in a folder, which made the embeddings of the index.

    Raises:
      UsageError: the folder holds no exported model, or another model.
    """
    storage.require_local(model, "model")
    card = load_card(model)
    if card.fingerprint != index.info.model:
        raise UsageError(
            f"model {card.directory}: is {card.fingerprint[:12]}, but index {index.info.directory}"
            f" is of model {index.info.model[:12]}; search with that one, or embed and build again"
        )
    return card


def by_source_id(
    index: SearchIndex, source_ids: Sequence[str], wanted: Wanted
) -> Iterator[tuple[Answer, None]]:
    """Yields an answer for each source id. One that is not in the index has a problem."""
    for source_id in source_ids:
        entry = index.find(source_id)
        if entry is None:
            yield Answer(source_id, problem=f"not in index {index.info.directory}"), None
        else:
            neighbours = index.nearest_of(source_id, **dataclasses.asdict(wanted))
            yield Answer(source_id, neighbours, entry), None


def by_image(
    index: SearchIndex, embedder: Embedder, files: Sequence[str], wanted: Wanted
) -> Iterator[tuple[Answer, bytes | None]]:
    """Yields an answer for each image file, and the file's bytes. A bad file has a problem."""
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        read = [_read(path) for path in batch]
        embedded = iter(embedder.embed_all([data for data in read if isinstance(data, bytes)]))
        results = [next(embedded) if isinstance(data, bytes) else data for data in read]
        vectors = [each for each in results if isinstance(each, np.ndarray)]
        queries = np.reshape(vectors, (len(vectors), index.info.dim))
        answers = iter(index.nearest(queries, **dataclasses.asdict(wanted)))
        for path, data, result in zip(batch, read, results, strict=True):
            if isinstance(result, BadImage):
                yield Answer(path, problem=result.reason), None
            else:
                assert isinstance(data, bytes)
                yield Answer(path, next(answers)), data


def _read(path: str) -> bytes | BadImage:
    try:
        with storage.open_read(path) as file:
            head = file.read(HEAD_BYTES)
            require_image(head)  # so that a large file that is no image is not read as a whole
            return head + file.read()
    except BadImage as error:
        return error
    except OSError as error:
        problem = storage.problem_of_file(error)
        if problem is None:
            raise
        return BadImage(problem)
