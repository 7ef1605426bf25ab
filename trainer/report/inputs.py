"""Reads what a report is made from: embeddings, their data set, and the files of the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.evaluation.results import read_results, results_name, results_path
from trainer.runs.folder import read_training_metrics
from tripletmill.errors import UsageError
from tripletmill.formats.embeddings import Embeddings, load_embeddings
from tripletmill.formats.index import DatasetInfo, load_index, load_info
from tripletmill.formats.model_card import CARD_FILE, EXPORT_FOLDER, load_card
from tripletmill.formats.splits import default_splits
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a report, except for the pictures.

    Attributes:
      info: the data set.
      embeddings: N embeddings with labels.
      names: class name by label.
      group: [N], value of the data set's group column for each image, None for an image without a
        group. None if the data set has no group column.
      queries: int64 [Q], rows of the split whose images are queries.
      gallery: int64 [M], rows of the split that is searched. None: the queries are searched.
      split: name of the queries' split.
      searched: name of the gallery's split. None: it is the queries' split.
      evaluation: content of evaluation/SPLIT.json. None if there is no such file.
      history: the rows of metrics.jsonl in order. Empty if there is no such file.
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
        """Whether the evaluation left images out of rankings by another group column than this."""
        return self.evaluation is not None and self.evaluation.get("group") != self.info.group


def load(*, model_dir: str, data_dir: str, embeddings_dir: str, split: str | None = None) -> Inputs:
    """Reads the inputs of a report.

    Args:
      model_dir: folder of the run.
      data_dir: the data set that was embedded.
      embeddings_dir: folder that `python -m pipeline.embed` wrote.
      split: the split whose images are queries. None: `query`, searched in `gallery`, if both
        exist, and otherwise `test`.

    Raises:
      UsageError: an input is missing, or the inputs do not belong together.
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
    names, group = _names_and_groups(info, embeddings)
    splits = {*embeddings.split.tolist()}
    searched = None
    if split is None:
        split, searched = default_splits(splits)
    if split not in splits:
        raise UsageError(
            f"embeddings {embeddings_dir}: none of split {split!r}, only of"
            f" {', '.join(sorted(splits)) or 'no images'}; choose one with --split"
        )
    name = results_name(model_dir, info, split, searched)
    return Inputs(
        info=info,
        embeddings=embeddings,
        names=names,
        group=group,
        queries=np.flatnonzero(embeddings.split == split),
        gallery=None if searched is None else np.flatnonzero(embeddings.split == searched),
        split=split,
        searched=searched,
        evaluation=_evaluation(results_path(model_dir, name)),
        history=read_training_metrics(model_dir),
    )


def _names_and_groups(
    info: DatasetInfo, embeddings: Embeddings
) -> tuple[dict[int, str], np.ndarray | None]:
    """Class names by label, and the group [N] of each image, None if there is no group column."""
    group = None if info.group is None else np.full(len(embeddings), None, object)
    names: dict[int, str] = {}
    mismatch = UsageError(
        f"embeddings {embeddings.info.directory}: not of the data set {info.directory}; embed it"
        " with `python -m pipeline.embed --data_dir=...`"
    )
    for split in {*embeddings.split.tolist()}:
        if split not in info.num_images:
            raise mismatch
        index = load_index(info.directory, split)
        names |= index.class_names()
        row_of = {name: row for row, name in enumerate(index.column("source_id").to_pylist())}
        places = np.flatnonzero(embeddings.split == split)
        rows = np.array([row_of.get(name, -1) for name in embeddings.source_id[places]], np.int64)
        if (rows < 0).any() or (index.label[rows] != embeddings.label[places]).any():
            raise mismatch
        if group is not None and info.group is not None:
            values = index.column(info.group).to_pylist()
            group[places] = [values[row] or None for row in rows.tolist()]
    return names, group


def _evaluation(path: str) -> Mapping[str, Any] | None:
    try:
        content = read_results(path)
    except FileNotFoundError:
        return None
    if content is None:
        raise UsageError(f"{path}: not written by tripletmill; evaluate again")
    return content
