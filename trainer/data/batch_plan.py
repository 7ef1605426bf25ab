"""The sampler of P x K batches: P classes a batch, with K images of each class.

  plan = BatchPlan(index, classes_per_batch=32, images_per_class=4, seed=0)
  rows = plan.batch(step)    # rows of the index, [P * K], class after class

A batch is a pure function of the seed and the step. Nothing is carried from one step to the next.
A run therefore resumes from its step number alone, and all hosts agree without communication.
"""

import copy
from typing import Self

import numpy as np

from trainer.data.class_rows import ClassRows, Labelled
from trainer.data.stateless_random import key, permuted, uniform
from tripletmill.errors import UsageError

WEIGHTINGS = ("uniform", "sqrt", "size")

# Each use of random numbers has a stream of its own.
_CYCLE, _CLASSES, _IMAGES, _WEIGHTED = range(4)
# Rates of classes are integers in this unit: a class with this rate is in every batch. Floats would
# be rounded, and rounding could draw one class twice for a batch.
FIXED_POINT_ONE = 2**40
# float32 holds a sum of this many products of two integers from -127 to 127 exactly.
EXACT_DIMENSIONS = 1024


class BatchPlan:
    """Draws the images of each training step.

    An appearance of a class is one batch in which the class is drawn.

    Uniform weighting: a pass goes over the classes in random order, P classes a step. If P does not
    divide the number of classes, each pass leaves out the remainder, and the classes take turns at
    being left out. The images of a class are drawn in random order, and each image is drawn once
    before any image is drawn again.

    Weighting by "sqrt" or "size": each class appears as often as its weight says, to within one
    appearance in every `steps_per_pass` steps (systematic sampling; Madow, 1949), and at most once
    in a batch. Each appearance draws its images independently.

    Hard batches: a share of the classes are the nearest neighbours of the batch's first class. The
    other classes are drawn uniformly. Each appearance draws its images independently.

    A batch holds an image twice only if its class has fewer than K images. The images of such a
    class are then repeated as evenly as possible.

    Args:
      index: its `label`, [N]. The rows of a class may lie anywhere in the index.
      classes_per_batch: P, the number of distinct classes in a global batch, at least 2.
      images_per_class: K, at least 2.
      seed: any integer.
      num_hosts: number of hosts that each read a part of the batch; divides P x K.
      host: index of this host, 0 to below num_hosts.
      min_images: classes with fewer images are left out. K leaves out all classes that would have
        to repeat images; 1 leaves out none.
      class_weighting: how often a class appears: "uniform" for all classes alike, "sqrt" in
        proportion to the square root of its number of images, "size" in proportion to that number.
      hard_share: share of each batch's classes that are neighbours of its first class, 0 to below
        1. It needs uniform weighting, and acts only if `batch` is given the class centres.

    Attributes:
      class_rows: the rows of the index for the classes that batches are drawn from.
      classes: [C] labels of these classes, ascending.
      num_skipped: number of classes that were left out.

    Raises:
      UsageError: an argument is out of its range, or there are fewer than P classes.
    """

    def __init__(
        self,
        index: Labelled,
        *,
        classes_per_batch: int,
        images_per_class: int,
        seed: int = 0,
        num_hosts: int = 1,
        host: int = 0,
        min_images: int = 2,
        class_weighting: str = "uniform",
        hard_share: float = 0.0,
    ) -> None:
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.seed = seed
        self.min_images = min_images
        self.class_weighting = class_weighting
        self.hard_share = hard_share
        self._check_arguments()
        self.class_rows = ClassRows(index, min_images=min_images)
        self.classes = self.class_rows.labels
        self.num_skipped = self.class_rows.num_skipped
        self._check_classes()
        counts = self.class_rows.counts
        self._appearances_per_cycle = counts // np.gcd(counts, images_per_class)
        self._rates = None if class_weighting == "uniform" else self._fixed_point_rates()
        self._rates_of_pass: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None
        self._set_host(host, num_hosts)

    def _check_arguments(self) -> None:
        weighting, hard_share = self.class_weighting, self.hard_share
        unless = "unless class_weighting is 'uniform'"
        for name, is_valid, valid in (
            ("images_per_class", self.images_per_class >= 2, "at least 2"),
            ("classes_per_batch", self.classes_per_batch >= 2, "at least 2"),
            ("min_images", self.min_images >= 1, "at least 1"),
            ("class_weighting", weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}"),
            ("hard_share", 0 <= hard_share < 1, "at least 0 and below 1"),
            ("hard_share", weighting == "uniform" or not hard_share, f"0 {unless}"),
        ):
            if not is_valid:
                raise UsageError(f"BatchPlan.{name} is {getattr(self, name)!r}; it must be {valid}")

    def _check_classes(self) -> None:
        if self.num_classes < self.classes_per_batch:
            least = "two images" if self.min_images == 2 else f"{self.min_images} images"
            fewer = f" ({self.num_skipped} more have fewer)" if self.num_skipped else ""
            advice = f"set it to {self.num_classes} or less"
            raise UsageError(
                f"BatchPlan.classes_per_batch is {self.classes_per_batch}, but the split has only"
                f" {self.num_classes} classes with {least} or more{fewer};"
                f" {advice if self.num_classes >= 2 else 'at least 2 are needed'}"
            )

    def _set_host(self, host: int, num_hosts: int) -> None:
        if not 0 <= host < num_hosts:
            raise UsageError(
                f"BatchPlan.host is {host}; it must be at least 0 and below num_hosts, which is"
                f" {num_hosts}"
            )
        if self.batch_size % num_hosts:
            raise UsageError(
                f"a batch of {self.classes_per_batch} x {self.images_per_class} images cannot be"
                f" divided evenly among {num_hosts} hosts; change BatchPlan.classes_per_batch"
            )
        self._host, self._num_hosts = host, num_hosts

    def for_host(self, host: int, num_hosts: int) -> Self:
        """The same plan as another host sees it."""
        plan = copy.copy(self)
        plan._set_host(host, num_hosts)
        return plan

    @property
    def num_classes(self) -> int:
        """C, the number of classes that batches are drawn from."""
        return self.class_rows.num_classes

    @property
    def batch_size(self) -> int:
        """P x K, the number of images in a global batch."""
        return self.classes_per_batch * self.images_per_class

    @property
    def slots(self) -> np.ndarray:
        """Positions of this host's images in the global batch, [P * K / num_hosts]."""
        size = self.batch_size // self._num_hosts
        return np.arange(self._host * size, (self._host + 1) * size)

    @property
    def steps_per_pass(self) -> int:
        """Number of steps in which, with uniform weighting, each class appears at most once."""
        return self.num_classes // self.classes_per_batch

    def batch(
        self, step: int, *, fallbacks: int = 0, centres: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows of the index that this host reads in a step.

        Args:
          step: 0 or more.
          fallbacks: how many other images to name for each image, in case its record is damaged.
          centres: [C, D], a centre for each of `classes`, for hard batches: the result of
            `quantized`. Apply `exact` to it first if many batches are asked for.

        Returns:
          [P * K / num_hosts] int64, the K images of a class one after the other. With fallbacks it
          is [1 + fallbacks, P * K / num_hosts]: row f holds the f-th fallback of each image, which
          is another image of the same class. An image is its own fallback only if its class has no
          other image. Fallbacks also differ from the rest of the batch if the class is large
          enough.
        """
        size = self.images_per_class
        classes, first, keys = self._draw_classes(step, centres)
        slots = self.slots
        class_of_slot = slots // size
        here = slice(class_of_slot[0], class_of_slot[-1] + 1)
        classes, first, keys = classes[here], first[here], keys[here]
        counts = self.class_rows.counts[classes]
        places = [first[:, None] + np.arange(size)]
        for fallback in range(fallbacks):
            # The images of the class's next appearance, unless that leads back to the image itself.
            distance = 1 + (size - 1 + fallback) % np.maximum(counts - 1, 1)
            places.append(places[0] + distance[:, None])
        numbers = permuted(np.hstack(places) % counts[:, None], counts, keys)
        rows = self.class_rows.rows(classes[:, None], numbers)
        rows = rows.reshape(len(classes), 1 + fallbacks, size).swapaxes(0, 1)
        offset = slots[0] - here.start * size
        rows = rows.reshape(1 + fallbacks, -1)[:, offset : offset + len(slots)]
        return rows if fallbacks else rows[0]

    def _draw_classes(
        self, step: int, centres: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes of a step, and how each draws its images.

        Returns:
          The classes, [P], as positions in `classes`; the place in the permutation of the class's
          images at which this appearance begins, [P]; and the key of that permutation, [P].
        """
        if not self.hard_share and self._rates is None:
            classes, appearances = self._uniform_classes(step, self.classes_per_batch)
            # The images of a class lie in a cycle, K for each appearance. A new cycle is drawn when
            # an appearance ends exactly at the end of the cycle.
            cycles, appearance = np.divmod(appearances, self._appearances_per_cycle[classes])
            keys = key(self.seed, _IMAGES, cycles, classes)
            return classes, appearance * self.images_per_class, keys
        if self.hard_share and centres is not None:
            classes = self._hard_classes(step, centres)
        elif self._rates is not None:
            classes = self._weighted_classes(self._rates, step)
        else:
            classes, _ = self._uniform_classes(step, self.classes_per_batch)
        keys = key(self.seed, _WEIGHTED, _IMAGES, step, classes)
        return classes, np.zeros(len(classes), np.int64), keys

    def _uniform_classes(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws `count` classes for a step, uniformly.

        Returns:
          The classes, [count], as positions in `classes`, and the number of earlier appearances of
          each, [count].
        """
        total = self.num_classes
        steps, dropped = divmod(total, count)
        pass_number, place = divmod(step, steps)
        # Each pass leaves out the next `dropped` classes of one fixed cycle.
        first_dropped = pass_number * dropped
        places = np.arange(place * count, (place + 1) * count)[None]
        order = key(self.seed, _CLASSES, pass_number)
        remaining = permuted(places, total - dropped, order)
        on_cycle = (first_dropped + dropped + remaining) % total
        classes = permuted(on_cycle, total, key(self.seed, _CYCLE))[0]
        left_out_before = np.maximum(0, -(-(first_dropped - on_cycle[0]) // total))
        return classes, pass_number - left_out_before

    def _hard_classes(self, step: int, centres: np.ndarray) -> np.ndarray:
        """The first class, then its nearest classes, then classes drawn uniformly, [P]."""
        if len(centres) != self.num_classes:
            raise ValueError(f"centres must be [{self.num_classes}, D], not {centres.shape}")
        hard = min(round(self.hard_share * self.classes_per_batch), self.classes_per_batch - 1)
        drawn, _ = self._uniform_classes(step, self.classes_per_batch - hard)
        centres = exact(centres)
        nearness = centres @ centres[drawn[0]]
        nearness[drawn] = -np.inf
        least = np.partition(nearness, -hard)[-hard] if hard else np.inf
        candidates = np.flatnonzero(nearness >= least)
        nearest = candidates[np.argsort(-nearness[candidates], kind="stable")[:hard]]
        return np.concatenate([drawn[:1], nearest, drawn[1:]])

    def _weighted_classes(self, rates: np.ndarray, step: int) -> np.ndarray:
        """Draws the classes of a step by their rates, [P] (systematic sampling).

        The rates of the classes are laid end to end on a line. P points, FIXED_POINT_ONE apart,
        each select the class on whose rate they fall. The first point lies in one of
        `steps_per_pass` equal strata of the first FIXED_POINT_ONE. Each step of a pass has another
        stratum; the offset within the stratum is one random number for the whole pass.
        """
        steps = self.steps_per_pass
        pass_number, place = divmod(step, steps)
        order, ends = self._cumulative_rates(rates, pass_number)
        pass_key = key(self.seed, _WEIGHTED, _CLASSES, pass_number)
        stratum = permuted(np.array([[place]]), steps, pass_key).item()
        start = int((stratum + uniform(pass_key, 1).item()) * FIXED_POINT_ONE / steps)
        points = start + np.arange(self.classes_per_batch) * FIXED_POINT_ONE
        return order[np.searchsorted(ends, points, side="right")]

    def _cumulative_rates(
        self, rates: np.ndarray, pass_number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The classes in the order of a pass, [C], and their cumulative rates, [C]."""
        if self._rates_of_pass is None or self._rates_of_pass[0] != pass_number:
            numbers = np.arange(self.num_classes)
            order = np.argsort(key(self.seed, _WEIGHTED, _CYCLE, pass_number, numbers))
            self._rates_of_pass = (pass_number, (order, np.cumsum(rates[order])))
        return self._rates_of_pass[1]

    def _fixed_point_rates(self) -> np.ndarray:
        """Rate of each class, [C] int64 in units of 1 / FIXED_POINT_ONE; the sum is exactly P."""
        power = 0.5 if self.class_weighting == "sqrt" else 1.0
        weights = self.class_rows.counts**power
        rates = np.zeros(self.num_classes)
        # A class whose weight asks for more than one appearance a batch gets exactly one. What it
        # cannot use goes to the other classes.
        always = np.zeros(self.num_classes, bool)
        while True:
            rest = self.classes_per_batch - always.sum()
            rates = np.where(always, 1.0, rest * weights / max(weights[~always].sum(), 1e-300))
            if not (over := (rates >= 1) & ~always).any():
                break
            always |= over
        fixed = np.where(always, FIXED_POINT_ONE, (rates * FIXED_POINT_ONE).astype(np.int64))
        others = np.flatnonzero(~always)
        lacking = self.classes_per_batch * FIXED_POINT_ONE - int(fixed.sum())
        if len(others):
            each, more = divmod(lacking, len(others))
            fixed[others] += each
            fixed[others[:more]] += 1
        return fixed


def exact(centres: np.ndarray) -> np.ndarray:
    """Quantized centres as floats, of a type in which their dot products are exact.

    Exact dot products are the same on all hosts, whatever order the sums are computed in.

    Args:
      centres: [C, D], the result of `quantized`, or of this function, which is returned unchanged.

    Returns:
      [C, D] float32, or float64 if D is above EXACT_DIMENSIONS.
    """
    exact_type = np.float32 if centres.shape[1] <= EXACT_DIMENSIONS else np.float64
    return centres.astype(exact_type, copy=False)


def quantized(centres: np.ndarray) -> np.ndarray:
    """Class centres as small integers, for `BatchPlan.batch`.

    Args:
      centres: [C, D] of any float type.

    Returns:
      [C, D] int8: each centre scaled to unit length, then to -127 to 127. Zero vectors stay zero.
    """
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return np.rint(127 * centres / np.maximum(lengths, 1e-12)).astype(np.int8)
