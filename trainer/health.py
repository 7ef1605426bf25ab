"""Signs that training goes wrong, seen in the numbers of each loop."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

# Rows looked at: enough to tell, and milliseconds for any number of dimensions.
ROWS = 256
# What embeddings differ by, beside their length, where only float32's rounding tells them apart.
ROUNDING = 1e-6

# Seen on two data sets. A run that collapses (batch-hard mining from scratch at a learning rate at
# which semi-hard mining learns, or any mining at a hundred times that) has a spread of 0 to .005
# after 20 steps (of .01 to .02 in two dimensions) and stays there; its effective rank may still be
# 40, being that of what little is left. A run that learns falls to .07 in its first 50 steps if it
# is from scratch; a pretrained one is above .8 from the start.
LEAST_SPREAD = 0.02
# With two directions or more, rank falls below this only where nearly all lies on a line.
LEAST_RANK = 1.5
# Runs that learn end with 15 % (from scratch) and 4 % (pretrained) of their triplets active.
LEAST_ACTIVE = 0.01
# Where input keeps up, a share of .001 to .02 is seen.
MOST_INPUT = 0.5
# What is nearly equal, of mined distances; and what counts as a fall, of them or of the loss.
NEARLY, FALL = 0.02, 0.02
ALL_ACTIVE = 0.99
# How long a sign must hold. A pipeline fills, and a run finds its feet, in less.
LOOPS = 3
STEPS = 50
# Runs that learn may have equal distances for longer: semi-hard negatives lie just beyond their
# positives as long as those are among the many, and batch-hard mining goes through it, for 10 to 20
# steps on one data set.
STUCK_STEPS = 200


def spread(embeddings: np.ndarray) -> float:
    """Root mean square distance from the mean, as a share of the root mean square length.

    Args:
      embeddings: [b, D] floats; of more than ROWS rows, so many are looked at, evenly.

    Returns:
      0 (all are equal, or there are none) to 1 (their mean is zero), whatever their scale; NaN
      where one is not finite.
    """
    rows = _some(embeddings)
    length = _size(rows)
    return _size(_centred(rows)) / length if length else 0.0


def effective_rank(embeddings: np.ndarray) -> float:
    """How many directions embeddings fill: exp of the entropy of their singular values.

    Of centred embeddings, their singular values summing to 1 (Roy, Vetterli: The Effective Rank,
    2007). k orthogonal directions with equal weight count k, weaker ones less.

    Args:
      embeddings: [b, D] floats; of more than ROWS rows, so many are looked at, evenly.

    Returns:
      1 to min(b - 1, D); 1 where all are equal but for rounding, or there are none; NaN where one
      is not finite.
    """
    rows = _some(embeddings)
    centred = _centred(rows)
    size = _size(centred)
    if not np.isfinite(size):
        return float("nan")
    if size <= ROUNDING * _size(rows):
        return 1.0
    centred /= size
    # The smaller of the two products; its eigenvalues are squares of the singular values.
    tall = len(centred) > centred.shape[1]
    squares = np.linalg.eigvalsh(centred.T @ centred if tall else centred @ centred.T)
    squares = squares[squares > squares[-1] * len(squares) * np.finfo(np.float64).eps]
    weights = np.sqrt(squares) / np.sqrt(squares).sum()
    return float(np.exp(-np.sum(weights * np.log(weights))))


@dataclasses.dataclass(frozen=True)
class _Sign:
    """A kind of trouble.

    Attributes:
      holds: whether a loop's numbers show it.
      text: what to say with them.
      steps: over how many it must hold.
      begins_anew: of the numbers that it began with and those of now, whether it only begins now.
    """

    holds: Callable[[Mapping[str, float]], bool]
    text: str
    steps: int = STEPS
    begins_anew: Callable[[Mapping[str, float], Mapping[str, float]], bool] = lambda was, now: False


def _equal_distances(of: Mapping[str, float]) -> bool:
    """Whether all triplets cost something, and on average the margin; a sign of nothing alone."""
    nan = float("nan")
    positive, negative = of.get("positive_distance", nan), of.get("negative_distance", nan)
    near = abs(negative - positive) < NEARLY * negative
    return near and of.get("active", 0) >= ALL_ACTIVE and "loss" in of


def _moves(was: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether a run still finds its way: loss or distances fall, or the learning rate rises."""
    falls = any(now[name] < (1 - FALL) * was[name] for name in ("loss", "positive_distance"))
    return falls or now.get("learning_rate", 0) > was.get("learning_rate", 0)


_SIGNS = (
    _Sign(
        lambda of: of.get("spread", 1) < LEAST_SPREAD or of.get("effective_rank", 2) < LEAST_RANK,
        "embeddings have collapsed (spread {spread:.2g} of 1, effective rank {effective_rank:.1f}):"
        " lower the learning rate, warm up longer, or mine semi-hard instead of hard negatives",
    ),
    _Sign(
        lambda of: of.get("active", 1) < LEAST_ACTIVE,
        "only {active:.1%} of the triplets are active, the rest teach nothing:"
        " make batches harder (BatchPlan.hard_share), mine hard negatives, or raise the margin",
    ),
    _Sign(
        lambda of: of.get("input_share", 0) > MOST_INPUT,
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
    """Warns of what goes wrong in a run, of each kind once.

    Collapse, idle triplets, slow input, and a loss that is stuck.
    """

    def __init__(self) -> None:
        self._left = list(_SIGNS)
        # Of those that hold: since which step, for how many loops, and with what numbers at first.
        self._held: dict[_Sign, tuple[int, int, Mapping[str, float]]] = {}

    def warnings(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """What there is to say after a loop.

        Args:
          step: that it ended with; more than at the call before.
          numbers: means over the loop, by name; of spread, effective_rank, active, input_share,
            loss, positive_distance, negative_distance and learning_rate those that are known, the
            first two together.

        Returns:
          A line for each sign that has now held in LOOPS loops in a row and over its steps.
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


def _some(embeddings: np.ndarray) -> np.ndarray:
    rows = np.linspace(0, len(embeddings) - 1, min(len(embeddings), ROWS)).round().astype(int)
    return embeddings[rows].astype(np.float64)


def _centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=0) if len(rows) else rows


def _size(rows: np.ndarray) -> float:
    """Root mean square length."""
    return float(np.sqrt(np.square(rows).sum() / max(len(rows), 1)))
