"""The training task that every library gets: a plain network and its input, as numpy arrays.

This module needs only numpy, because the peers' environments load it too.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDE, CHANNELS, CONVOLUTIONS, WIDTH = 28, 64, 3, 64
PEAK_RATE, EPSILON = 1e-3, 1e-7
MARGIN = 0.2
WARM_UP = 10  # steps that are not timed


@dataclasses.dataclass(frozen=True)
class Task:
    """What every library trains on.

    Attributes:
      images: [N, SIDE, SIDE] uint8.
      labels: [N] int64.
      batches: [steps, batch] int64, rows of `images`.
      unseen: [M, SIDE, SIDE] uint8, images of classes that training does not see.
      weights: the initial weights: convolutions [3, 3, in, out], and last the projection
        [features, WIDTH], whose features are in the order height, width, channels.
    """

    images: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    unseen: np.ndarray
    weights: list[np.ndarray]

    def save(self, path: Path) -> None:
        """Writes the task as one file."""
        with path.open("wb") as file:
            np.save(file, self.images)
            np.save(file, self.labels)
            np.save(file, self.batches)
            np.save(file, self.unseen)
            for weights in self.weights:
                np.save(file, weights)

    @staticmethod
    def load(path: Path) -> "Task":
        """Reads a file that `save` wrote."""
        with path.open("rb") as file:
            images, labels, batches, unseen = (np.load(file) for _ in range(4))
            weights = [np.load(file) for _ in range(CONVOLUTIONS + 1)]
        return Task(images, labels, batches, unseen, weights)


def initial_weights(seed: int) -> list[np.ndarray]:
    """Draws the initial weights from normal distributions.

    The variance is 2 / inputs for a convolution (He et al., 2015), 1 / inputs for the projection.
    """
    random = np.random.default_rng(seed)
    shapes = [(3, 3, 1 if n == 0 else CHANNELS, CHANNELS) for n in range(CONVOLUTIONS)]
    num_positions = (SIDE // 2**CONVOLUTIONS) ** 2  # each convolution is followed by 2 x 2 pooling

    def normal(shape: tuple[int, ...], gain: float) -> np.ndarray:
        deviation = math.sqrt(gain / math.prod(shape[:-1]))
        return random.normal(0, deviation, shape).astype(np.float32)

    return [*(normal(shape, 2) for shape in shapes), normal((num_positions * CHANNELS, WIDTH), 1)]


def scaled(images: np.ndarray) -> np.ndarray:
    """Converts images [n, SIDE, SIDE] from uint8 to float32 between -1 and 1."""
    return images.astype(np.float32) / 127.5 - 1


def run(
    task: Task,
    step: Callable[[np.ndarray, np.ndarray, float], float],
    embed: Callable[[np.ndarray], np.ndarray],
    output: Path,
) -> None:
    """Trains, embeds the unseen images, and writes embeddings, losses and times.

    The learning rate falls from PEAK_RATE to 0 along half a cosine.

    Args:
      task: the input.
      step: trains one step on images [b, SIDE, SIDE] float32 and labels [b] with a learning rate,
        and returns the loss.
      embed: turns images [n, SIDE, SIDE] float32 into embeddings [n, WIDTH].
      output: an .npz file with "embeddings" [M, WIDTH], "losses" [steps], and "seconds" of each
        step after the first WARM_UP steps (of all steps, if there are no more than WARM_UP).
    """
    losses, seconds = [], []
    for number, rows in enumerate(task.batches):
        images, labels = scaled(task.images[rows]), task.labels[rows]
        rate = PEAK_RATE * 0.5 * (1 + math.cos(math.pi * number / len(task.batches)))
        start = time.perf_counter()
        losses.append(step(images, labels, rate))
        seconds.append(time.perf_counter() - start)
    batches = np.array_split(task.unseen, len(task.unseen) // 256 + 1)
    np.savez(
        output,
        embeddings=np.concatenate([embed(scaled(batch)) for batch in batches]),
        losses=losses,
        seconds=seconds[WARM_UP:] or seconds,
    )
