"""P x K batches as a pure function: (seed, step) -> rows of the index.

  plan = BatchPlan(labels, classes_per_batch=32, images_per_class=4, seed=0)
  rows = plan.batch(step)    # [P, K]

Nothing is carried from step to step, so a run resumes from its step number alone, and hosts agree
without talking.
"""

import numpy as np

from preprocessing.errors import UsageError

# Keeps the streams of random numbers for different uses apart.
_CLASS_ORDER, _DROP_ORDER, _IMAGE_ORDER = 1, 2, 3


class BatchPlan:
    """Which images each step sees.

    A pass goes over the classes in random order, P a step. Where P does not divide their number,
    the remainder sits a pass out, each class in its turn. A class's images come in random order
    and all come before any comes again; a batch holds an image twice only if its class has fewer
    than K. Classes with a single image are left out.

    Args:
      labels: [N] label of each row of the index; a label's rows may lie anywhere.
      classes_per_batch: P, distinct classes in a global batch, at least 2.
      images_per_class: K, at least 2.
      seed: any integer.

    Attributes:
      num_classes: classes that batches are drawn from: those with at least two images.
      num_skipped: classes left out.

    Raises:
      UsageError: P or K too small, or fewer than P classes.
    """

    def __init__(
        self, labels: np.ndarray, *, classes_per_batch: int, images_per_class: int, seed: int = 0
    ) -> None:
        self.labels = labels
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.seed = seed
        self._rows = np.argsort(labels, kind="stable")
        _, starts, counts = np.unique(labels[self._rows], return_index=True, return_counts=True)
        self._starts, self._counts = starts[counts >= 2], counts[counts >= 2]
        self.num_classes = len(self._counts)
        self.num_skipped = len(counts) - self.num_classes
        self._check()

    def _check(self) -> None:
        for name, value in (
            ("images_per_class", self.images_per_class),
            ("classes_per_batch", self.classes_per_batch),
        ):
            if value < 2:
                raise UsageError(f"{name} {value}: at least 2")
        if self.num_classes < self.classes_per_batch:
            lone = f" ({self.num_skipped} more have only one)" if self.num_skipped else ""
            advice = f"set it to {self.num_classes} or less"
            raise UsageError(
                f"classes_per_batch {self.classes_per_batch}: the split has only"
                f" {self.num_classes} classes with two images or more{lone};"
                f" {advice if self.num_classes >= 2 else 'at least 2 are needed'}"
            )

    @property
    def batch_size(self) -> int:
        """P x K."""
        return self.classes_per_batch * self.images_per_class

    @property
    def steps_per_pass(self) -> int:
        """Steps in which every class comes at most once."""
        return self.num_classes // self.classes_per_batch

    def batch(self, step: int) -> np.ndarray:
        """Rows of the index, [P, K] int64, a class a line."""
        pass_number, place = divmod(step, self.steps_per_pass)
        classes, visits = self._classes(pass_number)
        here = slice(place * self.classes_per_batch, (place + 1) * self.classes_per_batch)
        return np.stack(
            [self._images(c, v) for c, v in zip(classes[here], visits[here], strict=True)]
        )

    def _classes(self, pass_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a pass in their order, and how often each came in earlier passes."""
        number = self.num_classes
        dropped_a_pass = number % self.classes_per_batch
        # Place of each class in a fixed circle; each pass drops the next few of it.
        circle = _permutation(number, self.seed, _DROP_ORDER, 0)
        place = np.empty(number, np.int64)
        place[circle] = np.arange(number)
        dropped_before = _visits_of_circle(place, number, pass_number * dropped_a_pass)
        dropped_after = _visits_of_circle(place, number, (pass_number + 1) * dropped_a_pass)
        order = _permutation(number, self.seed, _CLASS_ORDER, pass_number)
        order = order[(dropped_after == dropped_before)[order]]
        return order, pass_number - dropped_before[order]

    def _images(self, class_index: int, visit: int) -> np.ndarray:
        """Rows of a class at its n-th visit, [K]."""
        count, size = int(self._counts[class_index]), self.images_per_class
        first = int(visit) * size
        if count < 2 * size:
            # Few images: one circle, so that any run of them is as varied as can be.
            circle = _permutation(count, self.seed, _IMAGE_ORDER, class_index, 0)
            chosen = circle[(first + np.arange(size)) % count]
        else:
            epoch, place = divmod(first, count)
            chosen = self._image_order(class_index, count, epoch)[place : place + size]
            if len(chosen) < size:
                following = self._image_order(class_index, count, epoch + 1)
                chosen = np.concatenate([chosen, following[: size - len(chosen)]])
        return self._rows[self._starts[class_index] + chosen]

    def _image_order(self, class_index: int, count: int, epoch: int) -> np.ndarray:
        """Order of a class's images, its head arranged so that no visit repeats an image."""
        order = _permutation(count, self.seed, _IMAGE_ORDER, class_index, epoch)
        left_over = -epoch * count % self.images_per_class
        if epoch and left_over:
            # A visit that began in the last order still needs `left_over` images of this one.
            before = _permutation(count, self.seed, _IMAGE_ORDER, class_index, epoch - 1)
            tail = before[count - (self.images_per_class - left_over) :]
            head = order[: self.images_per_class]
            repeats = np.isin(head, tail)
            order[: self.images_per_class] = np.concatenate([head[~repeats], head[repeats]])
        return order


def _visits_of_circle(place: np.ndarray, size: int, steps: int) -> np.ndarray:
    """How often each place of a circle is passed in this many steps from place 0."""
    return np.maximum(0, -(-(steps - place) // size))


def _permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of range(count) that is a function of the key alone, on every platform."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in key:
            state = _mix(state ^ np.uint64(int(word) % 2**64))
        return np.argsort(_mix(state ^ _mix(np.arange(count, dtype=np.uint64))), kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood: Fast Splittable Random Numbers, 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
