"""Signs that training goes wrong, seen in the numbers of each loop."""

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
# How long a sign must hold. A pipeline fills, and a run finds its feet, in less.
LOOPS = 3
STEPS = 50


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


# A sign of trouble: whether a loop's numbers show it, and what to say with them.
_Sign = tuple[Callable[[Mapping[str, float]], bool], str]
_SIGNS: tuple[_Sign, ...] = (
    (
        lambda of: of.get("spread", 1) < LEAST_SPREAD or of.get("effective_rank", 2) < LEAST_RANK,
        "embeddings have collapsed (spread {spread:.2g} of 1, effective rank {effective_rank:.1f}):"
        " lower the learning rate, warm up longer, or mine semi-hard instead of hard negatives",
    ),
    (
        lambda of: of.get("active", 1) < LEAST_ACTIVE,
        "only {active:.1%} of the triplets are active, the rest teach nothing:"
        " make batches harder (BatchPlan.hard_share), mine hard negatives, or raise the margin",
    ),
    (
        lambda of: of.get("input_share", 0) > MOST_INPUT,
        "{input_share:.0%} of the time goes by waiting for images: store them"
        " smaller (preprocess.short_side), in memory (Reading.cache) or on a faster disk",
    ),
)


class Health:
    """Warns of what goes wrong in a run, of each kind once.

    The signs are collapsed embeddings, idle triplets and slow input.
    """

    def __init__(self) -> None:
        self._left = list(_SIGNS)
        # The step since which each sign has held, and for how many loops.
        self._held: dict[_Sign, tuple[int, int]] = {}

    def warnings(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """What there is to say after a loop.

        Args:
          step: that it ended with; more than at the call before.
          numbers: means over the loop, by name; those of spread, effective_rank, active and
            input_share that are known, the first two together.

        Returns:
          A line for each sign that has now held in LOOPS loops in a row and over STEPS steps.
        """
        lines = []
        for sign in list(self._left):
            holds, text = sign
            if not holds(numbers):
                self._held.pop(sign, None)
                continue
            since, loops = self._held.get(sign, (step, 0))
            self._held[sign] = since, loops + 1
            if loops + 1 >= LOOPS and step - since >= STEPS:
                self._left.remove(sign)
                lines.append(
                    f"warning: step {step:,}: since step {since:,} {text.format(**numbers)}"
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
