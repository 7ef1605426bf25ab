"""What a report is made of: embeddings, the data set they are of, and the run's own files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.evaluation.results import read_results, split_name
from trainer.runs.folder import is_data_of, read_training_metrics
from tripletmill.errors import UsageError
from tripletmill.formats.embeddings import Embeddings, load_embeddings
from tripletmill.formats.index import DatasetInfo, load_index, load_info
from tripletmill.formats.model_card import CARD_FILE, EXPORT_FOLDER, load_card
from tripletmill.formats.splits import GALLERY, QUERY
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """All that a report reads, but for the pictures.

    Attributes:
      info: the data set.
      embeddings: N of them, labelled.
      names: class name by label.
      group: [N] of what the data set names as its group, None where there is none; None without.
      queries: int64 [Q], rows of the split whose images are queries.
      gallery: int64 [M], rows of the split that is searched; None: the queries' own.
      split: name of the queries' split.
      searched: name of the gallery's, None for the same.
      evaluation: what evaluation/SPLIT.json says; None without one.
      history: the rows of metrics.jsonl, by step; none without one.
    """

    info: DatasetInfo
    embeddings: Embeddings
    names: Mapping[int, str]
    group: np.ndarray | None
    queries: np.ndarray
    gallery: np.ndarray | None
    split: str
    searched: str | None
    evaluation: Mapping[str, Any] | None
    history: Sequence[Mapping[str, Any]]

    @property
    def rules_differ(self) -> bool:
        """Whether the evaluation left out other images of rankings, or none, by their group."""
        return self.evaluation is not None and self.evaluation.get("group") != self.info.group


def load(*, model_dir: str, data_dir: str, embeddings_dir: str, split: str | None = None) -> Inputs:
    """Reads them.

    Args:
      model_dir: folder of the run.
      data_dir: the data set that was embedded.
      embeddings_dir: what `python -m pipeline.embed` wrote.
      split: whose images are queries; None: `query`, against `gallery`, where there are both, else
        `test`.

    Raises:
      UsageError: one is missing, or they do not belong together.
    """
    storage.require_local(model_dir, "model_dir")
    if not os.path.isdir(model_dir):
        raise UsageError(f"model_dir {model_dir}: no such folder")
    info = load_info(data_dir)
    embeddings = load_embeddings(embeddings_dir)
    card = storage.join(model_dir, EXPORT_FOLDER, CARD_FILE)
    if storage.is_file(card) and load_card(model_dir).fingerprint != embeddings.info.model:
        raise UsageError(
            f"embeddings {embeddings_dir}: of another model than {card}; embed again with"
            " --overwrite"
        )
    names, group = _data_of(info, embeddings)
    splits = {*embeddings.split.tolist()}
    searched = None
    if split is None:
        both = {QUERY, GALLERY} <= splits
        split, searched = (QUERY, GALLERY) if both else ("test", None)
    if split not in splits:
        raise UsageError(
            f"embeddings {embeddings_dir}: none of split {split!r}, only of"
            f" {', '.join(sorted(splits)) or 'no images'}; choose one with --split"
        )
    name = split_name(split, searched)
    name = name if is_data_of(model_dir, info) else f"{info.name}-{name}"
    return Inputs(
        info=info,
        embeddings=embeddings,
        names=names,
        group=group,
        queries=np.flatnonzero(embeddings.split == split),
        gallery=None if searched is None else np.flatnonzero(embeddings.split == searched),
        split=split,
        searched=searched,
        evaluation=_evaluation(os.path.join(model_dir, "evaluation", f"{name}.json")),
        history=read_training_metrics(model_dir),
    )


def _data_of(info: DatasetInfo, embeddings: Embeddings) -> tuple[dict[int, str], np.ndarray | None]:
    """Class names by label, and the group of each image."""
    group = None if info.group is None else np.full(len(embeddings), None, object)
    names: dict[int, str] = {}
    other = UsageError(
        f"embeddings {embeddings.info.directory}: not of the data set {info.directory}; embed it"
        " with `python -m pipeline.embed --data_dir=...`"
    )
    for split in {*embeddings.split.tolist()}:
        if split not in info.num_images:
            raise other
        index = load_index(info.directory, split)
        names |= index.class_names()
        row_of = {name: row for row, name in enumerate(index.column("source_id").to_pylist())}
        here = np.flatnonzero(embeddings.split == split)
        rows = np.array([row_of.get(name, -1) for name in embeddings.source_id[here]], np.int64)
        if (rows < 0).any() or (index.label[rows] != embeddings.label[here]).any():
            raise other
        if group is not None and info.group is not None:
            values = index.column(info.group).to_pylist()
            group[here] = [values[row] or None for row in rows.tolist()]
    return names, group


def _evaluation(path: str) -> Mapping[str, Any] | None:
    try:
        content = read_results(path)
    except FileNotFoundError:
        return None
    if content is None:
        raise UsageError(f"{path}: not written by tripletmill; evaluate again")
    return content
