"""Signs that training goes wrong, seen in the numbers of each call of the training loop."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

# Number of rows that are examined. These are enough to see a collapse, and they take milliseconds
# for any number of dimensions.
ROWS = 256
# If embeddings differ by less than this share of their length, only float32's rounding tells them
# apart.
ROUNDING = 1e-6

# These bounds were found on two data sets. A run that collapses (batch-hard mining from scratch at
# a learning rate at which semi-hard mining learns, or any mining at a hundred times that rate) has
# a spread of 0 to .005 after 20 steps (.01 to .02 in two dimensions) and stays there. Its effective
# rank may still be 40, because the rank does not depend on the size of what is left. A run that
# learns from scratch has a spread that falls to .07 in its first 50 steps. A pretrained one has a
# spread above .8 from the start.
LEAST_SPREAD = 0.02
# With two directions or more, the rank is below this only if nearly all embeddings lie on a line.
LEAST_RANK = 1.5
# Runs that learn end with 15 % (from scratch) and 4 % (pretrained) of their triplets active.
LEAST_ACTIVE = 0.01
# If the input keeps up with training, this share is .001 to .02.
MOST_INPUT = 0.5
# Two mined distances are nearly equal if they differ by this share; a smaller distance or loss
# counts as a fall from this share on.
NEARLY, FALL = 0.02, 0.02
ALL_ACTIVE = 0.99
# How long a sign must hold. The input pipeline fills up, and a run starts to learn, in less time.
LOOPS = 3
STEPS = 50
# Runs that learn may have equal distances for longer. Semi-hard negatives lie just beyond their
# positives while the positives are as far away as most other images are. Batch-hard mining passes
# through this state too, for 10 to 20 steps on one data set.
STUCK_STEPS = 200


def spread(embeddings: np.ndarray) -> float:
    """Returns the root mean square distance from the mean, divided by the root mean square length.

    Args:
      embeddings: [b, D] floats. If b is larger than ROWS, ROWS evenly spaced rows are examined.

    Returns:
      0 (all embeddings are equal, or there are none) to 1 (their mean is zero). It does not depend
      on their scale. NaN if an embedding is not finite.
    """
    rows = _evenly_spaced(embeddings)
    length = _rms_length(rows)
    return _rms_length(_centred(rows)) / length if length else 0.0


def effective_rank(embeddings: np.ndarray) -> float:
    """Returns how many directions embeddings fill: exp of the entropy of their singular values.

    The embeddings are centred, and their singular values are scaled to sum to 1 (Roy, Vetterli: The
    Effective Rank, 2007). k orthogonal directions of equal weight count as k; weaker directions
    count less.

    Args:
      embeddings: [b, D] floats. If b is larger than ROWS, ROWS evenly spaced rows are examined.

    Returns:
      1 to min(b - 1, D); 1 if all embeddings are equal except for rounding, or if there are none.
      NaN if an embedding is not finite.
    """
    rows = _evenly_spaced(embeddings)
    centred = _centred(rows)
    size = _rms_length(centred)
    if not np.isfinite(size):
        return float("nan")
    if size <= ROUNDING * _rms_length(rows):
        return 1.0
    centred /= size
    # The eigenvalues of either product are the squares of the singular values. The smaller product
    # is used.
    tall = len(centred) > centred.shape[1]
    squares = np.linalg.eigvalsh(centred.T @ centred if tall else centred @ centred.T)
    squares = squares[squares > squares[-1] * len(squares) * np.finfo(np.float64).eps]
    weights = np.sqrt(squares) / np.sqrt(squares).sum()
    return float(np.exp(-np.sum(weights * np.log(weights))))


@dataclasses.dataclass(frozen=True)
class _Sign:
    """A sign of one kind of trouble.

    Attributes:
      holds: a function of a call's numbers, whether they show the sign.
      text: the warning, to be formatted with the numbers.
      steps: number of steps over which the sign must hold.
      begins_anew: a function of the numbers at the sign's beginning and the numbers of now, whether
        the sign counts as beginning only now.
    """

    holds: Callable[[Mapping[str, float]], bool]
    text: str
    steps: int = STEPS
    begins_anew: Callable[[Mapping[str, float], Mapping[str, float]], bool] = lambda was, now: False


def _equal_distances(numbers: Mapping[str, float]) -> bool:
    """Returns whether all triplets are active, and their mean loss is the margin.

    This is a sign of trouble only if it lasts.
    """
    nan = float("nan")
    positive = numbers.get("positive_distance", nan)
    negative = numbers.get("negative_distance", nan)
    near = abs(negative - positive) < NEARLY * negative
    return near and numbers.get("active", 0) >= ALL_ACTIVE and "loss" in numbers


def _moves(was: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Returns whether a run still changes: loss or distances fall, or the learning rate rises."""
    falls = any(now[name] < (1 - FALL) * was[name] for name in ("loss", "positive_distance"))
    return falls or now.get("learning_rate", 0) > was.get("learning_rate", 0)


_SIGNS = (
    _Sign(
        lambda numbers: (
            numbers.get("spread", 1) < LEAST_SPREAD or numbers.get("effective_rank", 2) < LEAST_RANK
        ),
        "embeddings have collapsed (spread {spread:.2g} of 1, effective rank {effective_rank:.1f}):"
        " lower the learning rate, warm up longer, or mine semi-hard instead of hard negatives",
    ),
    _Sign(
        lambda numbers: numbers.get("active", 1) < LEAST_ACTIVE,
        "only {active:.1%} of the triplets are active, the rest teach nothing:"
        " make batches harder (BatchPlan.hard_share), mine hard negatives, or raise the margin",
    ),
    _Sign(
        lambda numbers: numbers.get("input_share", 0) > MOST_INPUT,
        "{input_share:.0%} of the time goes by waiting for images: store them"
        " smaller (preprocess.short_side), in memory (Reading.cache) or on a faster disk",
    ),
    _Sign(
        _equal_distances,
        "the loss is stuck at the margin ({loss:.3g}; if soft, log 2): negatives are no farther"
        " than positives ({negative_distance:.3g} and {positive_distance:.3g}), and neither falls:"
        " change the learning rate, mine semi-hard negatives, begin with pretrained weights, or see"
        " whether the labels are right",
        steps=STUCK_STEPS,
        begins_anew=_moves,
    ),
)


class Health:
    """Warns once of each kind of trouble: collapse, idle triplets, slow input, a stuck loss."""

    def __init__(self) -> None:
        self._left = list(_SIGNS)
        # For each sign that holds: since which step, for how many calls, and its first numbers.
        self._held: dict[_Sign, tuple[int, int, Mapping[str, float]]] = {}

    def warnings(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """Returns the warnings after a call of the training loop.

        Args:
          step: number of steps that are done, larger than at the call before.
          numbers: means over the call, by name. Those of spread, effective_rank, active,
            input_share, loss, positive_distance, negative_distance and learning_rate are used that
            are given. The first two have to be given together.

        Returns:
          A line for each sign that has now held in LOOPS calls in a row and over its steps.
        """
        lines = []
        for sign in list(self._left):
            if not sign.holds(numbers):
                self._held.pop(sign, None)
                continue
            since, loops, was = self._held.get(sign, (step, 0, numbers))
            if sign.begins_anew(was, numbers):
                since, loops, was = step, 0, numbers
            self._held[sign] = since, loops + 1, was
            if loops + 1 >= LOOPS and step - since >= sign.steps:
                self._left.remove(sign)
                lines.append(
                    f"warning: step {step:,}: since step {since:,} {sign.text.format(**numbers)}"
                )
        return lines


def _evenly_spaced(embeddings: np.ndarray) -> np.ndarray:
    rows = np.linspace(0, len(embeddings) - 1, min(len(embeddings), ROWS)).round().astype(int)
    return embeddings[rows].astype(np.float64)


def _centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=0) if len(rows) else rows


def _rms_length(rows: np.ndarray) -> float:
    return float(np.sqrt(np.square(rows).sum() / max(len(rows), 1)))
