"""The figures of an evaluation as a table, and as the file that keeps them."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from trainer.retrieval.confidence import confidence_intervals
from trainer.retrieval.metrics import (
    MAP_AT_R,
    R_PRECISION,
    RECIPROCAL_RANK,
    RetrievalMetrics,
    recall_name,
)
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex
from tripletmill.storage import storage
from tripletmill.storage.storage import write_file

RECALL_AT = (1, 2, 4, 8)
TRAINED = "trained model"
_WRITTEN = {"step", "num_classes", "num_queries", "results"}
COLUMNS = {
    **{recall_name(k): f"Recall@{k}" for k in RECALL_AT},
    MAP_AT_R: "MAP@R",
    R_PRECISION: "R-prec.",
    RECIPROCAL_RANK: "MRR",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
      queries: the split whose images were queries.
      gallery: the split that was searched, None for the same.
      group: column whose rows of one class are left out together, if any.
      step: of the trained model.
      num_damaged: images left out.
      metrics: by the name of what embedded the images; TRAINED is one.
    """

    queries: DatasetIndex
    gallery: DatasetIndex | None
    group: str | None
    step: int
    num_damaged: int
    metrics: Mapping[str, RetrievalMetrics]

    @property
    def name(self) -> str:
        """Of the splits, in file names and lines."""
        return split_name(self.queries.split, self._searched)

    @property
    def _searched(self) -> str | None:
        return None if self.gallery is None else self.gallery.split

    def write(self, path: str) -> None:
        """Writes them as JSON, whole or not at all."""
        trained = self.metrics[TRAINED]
        content = {
            "split": self.queries.split,
            "gallery": self._searched,
            "group": self.group,
            "step": self.step,
            "num_classes": trained.num_classes,
            "num_queries": trained.num_queries,
            "num_without_match": trained.num_without_match,
            "num_gallery": trained.num_gallery,
            "num_damaged": self.num_damaged,
            "results": {name: _known(metrics.mean) for name, metrics in self.metrics.items()},
            "intervals": {name: _intervals(metrics) for name, metrics in self.metrics.items()},
            "classes": self._classes(),
        }
        write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def show(self) -> None:
        """Prints them."""
        trained = self.metrics[TRAINED]
        searched = self._searched
        against = searched_words(searched, trained.num_gallery)
        print(
            f"\n{self.queries.split}: {trained.num_queries:,} images of"
            f" {trained.num_classes:,} classes, each a query against {against}; model of step"
            f" {self.step:,}"
        )
        if self.group:
            print(f"  images of a query's class and {self.group} are left out of its ranking")
        if trained.num_without_match:
            why = f"without a match in {searched}" if searched else "alone in their class"
            if self.group:
                why = f"without a match of another {self.group}"
            print(f"  {trained.num_without_match:,} images {why} are no queries")
        if self.num_damaged:
            print(f"  {self.num_damaged:,} images with damaged records are left out")
        print(f"  {'':26}" + "".join(f"{head:>10}" for head in COLUMNS.values()))
        for name, metrics in self.metrics.items():
            _print_row(name, metrics.mean)
        ends = confidence_intervals(trained)
        for end, what in enumerate(("95 % interval, from", "to")):
            _print_row(f"  {what}", {name: ends[name][end] for name in ends})

    def _classes(self) -> list[dict[str, Any]]:
        """The trained model's, by class."""
        trained, names = self.metrics[TRAINED], self.queries.class_names()
        return [
            {
                "label": label,
                "class": names[label],
                "num_queries": count,
                **{name: float(of[i]) for name, of in trained.of_classes.items()},
            }
            for i, (label, count) in enumerate(
                zip(trained.class_labels.tolist(), trained.class_counts.tolist(), strict=True)
            )
        ]


def read_results(path: str) -> dict[str, Any] | None:
    """What `Results.write` wrote; None for other JSON.

    Raises:
      UsageError: it is damaged, or no JSON.
      OSError: it cannot be read.
    """
    try:
        content = json.loads(storage.read(path))
    except ValueError as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); evaluate again, or move it away"
        ) from error
    known = isinstance(content, dict) and {*content} >= _WRITTEN
    return content if known and isinstance(content["results"], dict) else None


def split_name(queries: str, gallery: str | None) -> str:
    """SPLIT, or QUERIES-GALLERY."""
    return queries if gallery is None else f"{queries}-{gallery}"


def searched_words(gallery: str | None, num_gallery: int) -> str:
    """What each query was held against."""
    return "all others" if gallery is None else f"the {num_gallery:,} of {gallery}"


def worse(split: str, map_at_r: Mapping[str, float]) -> str | None:
    """A warning where the trained model does not come up to what there was without training.

    Fine-tuning can forget: a pretrained backbone's own features may tell unseen classes better.
    """
    name = max(map_at_r, key=lambda name: map_at_r[name])
    if not map_at_r[TRAINED] < map_at_r[name]:
        return None
    return (
        f"warning: training made it worse: MAP@R {map_at_r[TRAINED]:.3f} on {split}, {name}"
        f" {map_at_r[name]:.3f}; try a tenth of the learning rate, train.patience, or no head"
        " (build_model.embedding_dim = None)"
    )


def _print_row(name: str, values: Mapping[str, float]) -> None:
    print(f"  {name:26}" + "".join(f"{values[column]:>10.3f}" for column in COLUMNS))


def _known(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: None where no query is left that has a match."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _intervals(metrics: RetrievalMetrics) -> dict[str, list[float] | None]:
    """None where one class is all there is."""
    return {
        name: None if math.isnan(ends[0]) else list(ends)
        for name, ends in confidence_intervals(metrics).items()
    }
