"""The results of an evaluation: printed as a table, and kept as a JSON file in the run's folder."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.retrieval.confidence import confidence_intervals
from trainer.retrieval.metrics import (
    MAP_AT_R,
    R_PRECISION,
    RECIPROCAL_RANK,
    RetrievalMetrics,
    recall_name,
)
from trainer.runs.folder import EVALUATION_FOLDER, is_data_of
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, DatasetInfo
from tripletmill.storage import storage
from tripletmill.storage.storage import write_file

RECALL_AT = (1, 2, 4, 8)
TRAINED = "trained model"
_REQUIRED_KEYS = {"step", "num_classes", "num_queries", "results"}
# The metrics that every table shows: name -> heading.
COLUMNS = {
    **{recall_name(k): f"Recall@{k}" for k in RECALL_AT},
    MAP_AT_R: "MAP@R",
    R_PRECISION: "R-prec.",
    RECIPROCAL_RANK: "MRR",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Attributes:
      queries: the split whose images are queries.
      gallery: the split that is searched; None where it is the queries' split.
      group: column of the index by which rows are left out of rankings; None for no column.
      step: step of the trained model.
      num_damaged: number of images that were left out, since their records are damaged.
      metrics: name of what embedded the images -> its metrics. One name is TRAINED.
    """

    queries: DatasetIndex
    gallery: DatasetIndex | None
    group: str | None
    step: int
    num_damaged: int
    metrics: Mapping[str, RetrievalMetrics]

    @property
    def splits(self) -> tuple[str, str | None]:
        """Names of the queries' split and of the gallery's, None where that is the same split."""
        return self.queries.split, None if self.gallery is None else self.gallery.split

    def write(self, path: str) -> None:
        """Writes the results as JSON; the file is written as a whole or not at all."""
        trained = self.metrics[TRAINED]
        queries, gallery = self.splits
        content = {
            "split": queries,
            "gallery": gallery,
            "group": self.group,
            "step": self.step,
            "num_classes": trained.num_classes,
            "num_queries": trained.num_queries,
            "num_without_match": trained.num_without_match,
            "num_gallery": trained.num_gallery,
            "num_damaged": self.num_damaged,
            "results": {name: _without_nan(each.mean) for name, each in self.metrics.items()},
            "intervals": {
                name: _without_nan(confidence_intervals(each))
                for name, each in self.metrics.items()
            },
            "classes": self._classes(),
        }
        write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def show(self) -> None:
        """Prints the results."""
        trained = self.metrics[TRAINED]
        queries, gallery = self.splits
        print(
            f"\n{queries}: {trained.num_queries:,} images of {trained.num_classes:,} classes, each"
            f" a query against {searched_words(gallery, trained.num_gallery)}; model of step"
            f" {self.step:,}"
        )
        if self.group:
            print(f"  images of a query's class and {self.group} are left out of its ranking")
        if trained.num_without_match:
            reason = f"without a match in {gallery}" if gallery else "alone in their class"
            if self.group:
                reason = f"without a match of another {self.group}"
            print(f"  {trained.num_without_match:,} images {reason} are no queries")
        if self.num_damaged:
            print(f"  {self.num_damaged:,} images with damaged records are left out")
        print(f"  {'':26}" + "".join(f"{heading:>10}" for heading in COLUMNS.values()))
        for name, metrics in self.metrics.items():
            _print_row(name, metrics.mean)
        intervals = confidence_intervals(trained)
        for end, title in enumerate(("95 % interval, from", "to")):
            _print_row(f"  {title}", {name: intervals[name][end] for name in intervals})

    def _classes(self) -> list[dict[str, Any]]:
        """The trained model's metrics of each class."""
        trained, names = self.metrics[TRAINED], self.queries.class_names()
        labels = trained.class_labels.tolist()
        columns = {
            "label": labels,
            "class": [names[label] for label in labels],
            "num_queries": trained.class_counts.tolist(),
            **{name: values.tolist() for name, values in trained.of_classes.items()},
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def results_name(model_dir: str, info: DatasetInfo, queries: str, gallery: str | None) -> str:
    """Name of an evaluation, in its files and messages: SPLIT, or QUERIES-GALLERY.

    The name of another data set than the run's own stands before it, so that its results do not
    replace the run's own.

    Args:
      model_dir: folder of the run.
      info: the data set that is evaluated.
      queries: the split whose images are queries.
      gallery: the split that is searched; None where it is the queries' split.
    """
    name = queries if gallery is None else f"{queries}-{gallery}"
    return name if is_data_of(model_dir, info) else f"{info.name}-{name}"


def results_path(model_dir: str, name: str) -> str:
    """Path of the file that `Results.write` writes for an evaluation of this name."""
    return os.path.join(model_dir, EVALUATION_FOLDER, f"{name}.json")


def read_results(path: str) -> dict[str, Any] | None:
    """Reads what `Results.write` wrote.

    Returns:
      The content; None where the file holds other JSON.

    Raises:
      UsageError: the file is damaged, or holds no JSON.
      OSError: the file cannot be read.
    """
    try:
        content = json.loads(storage.read(path))
    except ValueError as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); evaluate again, or move it away"
        ) from error
    complete = isinstance(content, dict) and {*content} >= _REQUIRED_KEYS
    return content if complete and isinstance(content["results"], dict) else None


def searched_words(gallery: str | None, num_gallery: int) -> str:
    """Says which images each query is compared with."""
    return "all others" if gallery is None else f"the {num_gallery:,} of {gallery}"


def worse(name: str, map_at_r: Mapping[str, float]) -> str | None:
    """Warns where the trained model has a lower MAP@R than one of the baselines.

    Fine-tuning can forget: the features of a pretrained backbone may separate unseen classes
    better.

    Args:
      name: name of the evaluation.
      map_at_r: MAP@R by the name of what embedded the images; one name is TRAINED.

    Returns:
      The warning; None where no baseline is better.
    """
    best = max(map_at_r, key=lambda model: map_at_r[model])
    if not map_at_r[TRAINED] < map_at_r[best]:
        return None
    return (
        f"warning: training made it worse: MAP@R {map_at_r[TRAINED]:.3f} on {name}, {best}"
        f" {map_at_r[best]:.3f}; try a tenth of the learning rate, train.patience, or no head"
        " (build_model.embedding_dim = None)"
    )


def _print_row(name: str, values: Mapping[str, float]) -> None:
    print(f"  {name:26}" + "".join(f"{values[column]:>10.3f}" for column in COLUMNS))


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Puts None in place of NaN, which JSON does not have."""
    return {name: None if np.isnan(value).any() else value for name, value in values.items()}
