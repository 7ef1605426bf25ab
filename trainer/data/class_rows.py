"""Which rows of an index belong to each class, for the classes with enough images."""

from typing import Protocol

import numpy as np


class Labelled(Protocol):
    """The part of an index that gives each row its class: `label`, [N] integers."""

    @property
    def label(self) -> np.ndarray: ...


class ClassRows:
    """The rows of an index, grouped by class.

    Args:
      index: its `label`, [N]. The rows of a class may lie anywhere in the index.
      min_images: classes with fewer images are left out; 1 keeps all classes.

    Attributes:
      labels: [C] labels of the classes, ascending. The other methods name a class by its position
        in this array.
      counts: [C] number of images of each class.
      num_skipped: number of classes that were left out.
    """

    def __init__(self, index: Labelled, *, min_images: int = 1) -> None:
        # A run is a stretch of rows with one label. A class is one run, or several runs if it is
        # divided. The runs are sorted instead of the rows: for 50 million rows this takes a second.
        label = np.asarray(index.label)
        starts = np.flatnonzero(np.diff(label, prepend=label[:1] - 1)) if len(label) else label
        lengths = np.diff(starts, append=len(label))
        order = np.argsort(label[starts], kind="stable")
        self._run_rows, run_lengths = starts[order], lengths[order]
        self._run_places = np.cumsum(run_lengths) - run_lengths
        labels, first_runs = np.unique(label[self._run_rows], return_index=True)
        self._divided = len(labels) < len(starts)
        places = self._run_places[first_runs]
        counts = np.diff(places, append=len(label))

        enough = counts >= min_images
        self.labels = labels[enough]
        self.counts = counts[enough]
        self._starts = (places if self._divided else self._run_rows)[enough]
        self.num_skipped = int(len(enough) - enough.sum())

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.labels)

    def rows(self, classes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Finds images by class and number within the class.

        Args:
          classes: positions in `labels`, of any shape.
          numbers: from 0 to below the class's count, of a shape that broadcasts with `classes`.

        Returns:
          Rows of the index, int64, of the broadcast shape.
        """
        places = self._starts[classes] + numbers
        if not self._divided:
            return places
        run = np.searchsorted(self._run_places, places, side="right") - 1
        return self._run_rows[run] + (places - self._run_places[run])

    def first_rows(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The first rows of each class.

        Args:
          most: number of rows for each class; a class with fewer images gives all that it has.

        Returns:
          Rows of the index, [M], class after class, and the class of each row, [M].
        """
        counts = np.minimum(self.counts, most)
        classes = np.repeat(np.arange(self.num_classes), counts)
        numbers = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.rows(classes, numbers), classes
