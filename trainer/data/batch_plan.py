"""P x K batches as a pure function: (seed, step) -> rows of the index.

  plan = BatchPlan(index, classes_per_batch=32, images_per_class=4, seed=0)
  rows = plan.batch(step)    # [P * K], a class after the other

Nothing is carried from step to step, so a run resumes from its step number alone, and hosts agree
without talking.
"""

import copy
from typing import Protocol, Self

import numpy as np

from trainer.data.stateless_random import key, permuted, uniform
from tripletmill.errors import UsageError

WEIGHTINGS = ("uniform", "sqrt", "size")

# Keeps the streams of random numbers for different uses apart.
_CIRCLE, _CLASSES, _IMAGES, _WEIGHTED = range(4)
# A class that is in every batch; whole numbers, so that no rounding brings a class twice.
_ALWAYS = 2**40
# Up to so many products of two numbers from -127 to 127 have a sum that float32 holds exactly.
EXACT_DIMENSIONS = 1024


class Labelled(Protocol):
    """What a plan needs of an index: `label`, [N] integers, a row of the index each."""

    @property
    def label(self) -> np.ndarray: ...


class BatchPlan:
    """Which images each step sees.

    With uniform weighting, a pass goes over the classes in random order, P a step; where P does
    not divide their number, the remainder sits a pass out, each class in its turn. A class's
    images come in random order and all come before any comes again.

    With the other weightings a class comes as often as its weight says, to within one visit in
    every `steps_per_pass` steps (systematic sampling; Madow, 1949), at most once a batch, and each
    visit draws its images anew.

    In hard batches a share of the classes are those nearest to the batch's first class; the others
    are drawn uniformly, and each visit draws its images anew.

    A batch holds an image twice only if its class has fewer than K; then as evenly as can be.

    Args:
      index: its `label`, [N]; a label's rows may lie anywhere.
      classes_per_batch: P, distinct classes in a global batch, at least 2.
      images_per_class: K, at least 2.
      seed: any integer.
      num_hosts: hosts that read a part of each batch; divides P x K.
      host: which of them this is, 0 to below num_hosts.
      min_images: classes with fewer images are left out; K leaves out all that would have to
        repeat images, 1 none.
      class_weighting: "uniform", "sqrt" (of a class's images) or "size".
      hard_share: share of each batch's classes that are neighbours of its first class, 0 to below
        1; only with uniform weighting, and only where `batch` is given the classes' centres.

    Attributes:
      classes: [C] labels that batches are drawn from, ascending.
      num_skipped: classes left out.

    Raises:
      UsageError: a wrong argument, or fewer than P classes.
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

        # Runs of one label in file order: a class is one, or several where it is divided. Sorting
        # these instead of the rows takes a second for 50 million.
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

        kept = counts >= min_images
        self.classes = labels[kept]
        self._counts = counts[kept]
        self._starts = (places if self._divided else self._run_rows)[kept]
        self._visits_a_circle = self._counts // np.gcd(self._counts, images_per_class)
        self.num_skipped = int(len(kept) - kept.sum())
        self._check_classes()
        self._rates = self._visit_rates() if class_weighting != "uniform" else None
        self._line_of_pass: tuple[int, tuple[np.ndarray, np.ndarray]] = (-1, (label, label))
        self._host, self._num_hosts = 0, 1
        self._set_host(host, num_hosts)

    def _check_arguments(self) -> None:
        for name, value, least in (
            ("images_per_class", self.images_per_class, 2),
            ("classes_per_batch", self.classes_per_batch, 2),
            ("min_images", self.min_images, 1),
        ):
            if value < least:
                raise UsageError(f"{name} {value}: at least {least}")
        if self.class_weighting not in WEIGHTINGS:
            raise UsageError(
                f"class_weighting {self.class_weighting!r}: one of {', '.join(WEIGHTINGS)}"
            )
        if not 0 <= self.hard_share < 1:
            raise UsageError(f"hard_share {self.hard_share}: 0 to below 1")
        if self.hard_share and self.class_weighting != "uniform":
            raise UsageError(
                f"hard_share {self.hard_share}: only with class_weighting 'uniform', not"
                f" {self.class_weighting!r}"
            )

    def _check_classes(self) -> None:
        if self.num_classes < self.classes_per_batch:
            least = "two images" if self.min_images == 2 else f"{self.min_images} images"
            fewer = f" ({self.num_skipped} more have fewer)" if self.num_skipped else ""
            advice = f"set it to {self.num_classes} or less"
            raise UsageError(
                f"classes_per_batch {self.classes_per_batch}: the split has only"
                f" {self.num_classes} classes with {least} or more{fewer};"
                f" {advice if self.num_classes >= 2 else 'at least 2 are needed'}"
            )

    def _set_host(self, host: int, num_hosts: int) -> None:
        if not 0 <= host < num_hosts:
            raise UsageError(f"host {host}: 0 to below num_hosts {num_hosts}")
        if self.batch_size % num_hosts:
            raise UsageError(
                f"batch of {self.classes_per_batch} x {self.images_per_class} images: not"
                f" divisible by {num_hosts} hosts"
            )
        self._host, self._num_hosts = host, num_hosts

    def for_host(self, host: int, num_hosts: int) -> Self:
        """The same plan, of another host."""
        plan = copy.copy(self)
        plan._set_host(host, num_hosts)
        return plan

    @property
    def num_classes(self) -> int:
        """C, classes that batches are drawn from."""
        return len(self.classes)

    @property
    def num_images(self) -> int:
        """Images of these classes."""
        return int(self._counts.sum())

    @property
    def batch_size(self) -> int:
        """P x K, over all hosts."""
        return self.classes_per_batch * self.images_per_class

    @property
    def slots(self) -> np.ndarray:
        """Places of this host in the global batch, [P * K / num_hosts]."""
        size = self.batch_size // self._num_hosts
        return np.arange(self._host * size, (self._host + 1) * size)

    @property
    def steps_per_pass(self) -> int:
        """Steps in which, with uniform weighting, every class comes at most once."""
        return self.num_classes // self.classes_per_batch

    def class_rates(self) -> np.ndarray:
        """How often each class comes a step, [C], 0 to 1, summing to P; without hard_share."""
        if self._rates is None:
            return np.full(self.num_classes, self.classes_per_batch / self.num_classes)
        return self._rates / _ALWAYS

    def batch(self, step: int, *, spares: int = 0, centres: np.ndarray | None = None) -> np.ndarray:
        """Rows of the index that this host reads in a step.

        Args:
          step: 0 or more.
          spares: how many other images to name for each, in case one is damaged.
          centres: [C, D], a centre for each of `classes`, for hard batches: `quantized`, and
            `exact` where many batches are asked for.

        Returns:
          [P * K / num_hosts] int64, K of a class one after the other, and with spares
          [1 + spares, P * K / num_hosts]: line s has the s-th other image of the same class for
          each, never the image itself unless the class has no other, and distinct from the rest of
          the batch where the class has enough.
        """
        size = self.images_per_class
        if self.hard_share or self._rates is not None:
            if self.hard_share and centres is not None:
                classes = self._hard_classes(step, centres)
            elif self._rates is not None:
                classes = self._weighted_classes(self._rates, step)
            else:
                classes, _ = self._uniform_classes(step, self.classes_per_batch)
            first = np.zeros(len(classes), np.int64)
            circle = key(self.seed, _WEIGHTED, _IMAGES, step, classes)
        else:
            classes, visits = self._uniform_classes(step, self.classes_per_batch)
            # A class's images lie on a circle, drawn anew where a visit ends at a circle's end.
            rounds, visit = np.divmod(visits, self._visits_a_circle[classes])
            first = visit * size
            circle = key(self.seed, _IMAGES, rounds, classes)
        slots = self.slots
        class_of_slot = slots // size
        here = slice(class_of_slot[0], class_of_slot[-1] + 1)
        classes, first, circle = classes[here], first[here], circle[here]
        counts = self._counts[classes]
        places = [first[:, None] + np.arange(size)]
        for spare in range(spares):
            # The images of the class's next visit, but where that would lead back to itself.
            distance = 1 + (size - 1 + spare) % np.maximum(counts - 1, 1)
            places.append(places[0] + distance[:, None])
        found = permuted(np.hstack(places) % counts[:, None], counts, circle)
        rows = self._rows(self._starts[classes][:, None] + found)
        rows = rows.reshape(len(classes), 1 + spares, size).swapaxes(0, 1)
        offset = slots[0] - here.start * size
        rows = rows.reshape(1 + spares, -1)[:, offset : offset + len(slots)]
        return rows if spares else rows[0]

    def first_rows(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """So many rows of each class or all that it has, [M], and the class of each, [M]."""
        counts = np.minimum(self._counts, most)
        classes = np.repeat(np.arange(self.num_classes), counts)
        number = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._rows(self._starts[classes] + number), classes

    def _rows(self, places: np.ndarray) -> np.ndarray:
        """Places in the order of labels -> rows of the index; the same where no class is cut."""
        if not self._divided:
            return places
        run = np.searchsorted(self._run_places, places, side="right") - 1
        return self._run_rows[run] + (places - self._run_places[run])

    def _uniform_classes(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a step, [count], as places in `classes`, and how often each came before."""
        total = self.num_classes
        steps, dropped = divmod(total, count)
        pass_number, place = divmod(step, steps)
        # Each pass leaves out the next few of a fixed circle.
        first_dropped = pass_number * dropped
        places = np.arange(place * count, (place + 1) * count)[None]
        order = key(self.seed, _CLASSES, pass_number)
        kept = permuted(places, total - dropped, order)
        on_circle = (first_dropped + dropped + kept) % total
        classes = permuted(on_circle, total, key(self.seed, _CIRCLE))[0]
        left_out_before = np.maximum(0, -(-(first_dropped - on_circle[0]) // total))
        return classes, pass_number - left_out_before

    def _hard_classes(self, step: int, centres: np.ndarray) -> np.ndarray:
        """The first class, its nearest, and classes drawn uniformly, [P]."""
        if len(centres) != self.num_classes:
            raise ValueError(f"centres: [{self.num_classes}, D], not {centres.shape}")
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
        """Classes of a step, [P]: where points _ALWAYS apart fall on a line of the rates."""
        steps = self.steps_per_pass
        pass_number, place = divmod(step, steps)
        order, ends = self._line(rates, pass_number)
        of_pass = key(self.seed, _WEIGHTED, _CLASSES, pass_number)
        stratum = permuted(np.array([[place]]), steps, of_pass).item()
        start = int((stratum + uniform(of_pass, 1).item()) * _ALWAYS / steps)
        points = start + np.arange(self.classes_per_batch) * _ALWAYS
        return order[np.searchsorted(ends, points, side="right")]

    def _line(self, rates: np.ndarray, pass_number: int) -> tuple[np.ndarray, np.ndarray]:
        """The classes in the order of a pass, and where the rate of each ends, [C] both."""
        if self._line_of_pass[0] != pass_number:
            numbers = np.arange(self.num_classes)
            order = np.argsort(key(self.seed, _WEIGHTED, _CIRCLE, pass_number, numbers))
            self._line_of_pass = (pass_number, (order, np.cumsum(rates[order])))
        return self._line_of_pass[1]

    def _visit_rates(self) -> np.ndarray:
        """How often each class comes, [C] int64, _ALWAYS for a visit every step."""
        power = 0.5 if self.class_weighting == "sqrt" else 1.0
        weights = self._counts**power
        rates = np.zeros(self.num_classes)
        # Who is due more than once a batch comes once, and leaves the rest to the others.
        always = np.zeros(self.num_classes, bool)
        while True:
            rest = self.classes_per_batch - always.sum()
            rates = np.where(always, 1.0, rest * weights / max(weights[~always].sum(), 1e-300))
            if not (over := (rates >= 1) & ~always).any():
                break
            always |= over
        whole = np.where(always, _ALWAYS, (rates * _ALWAYS).astype(np.int64))
        others = np.flatnonzero(~always)
        lacking = self.classes_per_batch * _ALWAYS - int(whole.sum())
        if len(others):
            each, more = divmod(lacking, len(others))
            whole[others] += each
            whole[others[:more]] += 1
        return whole


def exact(centres: np.ndarray) -> np.ndarray:
    """Quantized centres as floats whose products and their sums are exact: alike on all hosts."""
    exactly = np.float32 if centres.shape[1] <= EXACT_DIMENSIONS else np.float64
    return centres.astype(exactly, copy=False)


def quantized(centres: np.ndarray) -> np.ndarray:
    """Class centres [C, D] of any float type -> [C, D] int8, for `BatchPlan.batch`.

    Scaled to unit length and then to -127 to 127; zero vectors stay zero.
    """
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return np.rint(127 * centres / np.maximum(lengths, 1e-12)).astype(np.int8)
