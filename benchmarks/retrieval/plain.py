"""A plain network and its input as numbers, the same for every library.

Nothing here but numpy: it runs in the peers' environments too.
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
WARM_UP = 10


@dataclasses.dataclass(frozen=True)
class Task:
    """What everyone trains on.

    Attributes:
      images: [N, SIDE, SIDE] uint8.
      labels: [N] int64.
      batches: [steps, batch] int64, rows of `images`.
      unseen: [M, SIDE, SIDE] uint8, of other classes.
      weights: of the convolutions [3, 3, in, out] and the projection [features, WIDTH], in the
        order height, width, channels.
    """

    images: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    unseen: np.ndarray
    weights: list[np.ndarray]

    def save(self, path: Path) -> None:
        """Writes one file."""
        with path.open("wb") as file:
            np.save(file, self.images)
            np.save(file, self.labels)
            np.save(file, self.batches)
            np.save(file, self.unseen)
            for weights in self.weights:
                np.save(file, weights)

    @staticmethod
    def load(path: Path) -> "Task":
        """Reads what `save` wrote."""
        with path.open("rb") as file:
            images, labels, batches, unseen = (np.load(file) for _ in range(4))
            weights = [np.load(file) for _ in range(CONVOLUTIONS + 1)]
        return Task(images, labels, batches, unseen, weights)


def start_weights(seed: int) -> list[np.ndarray]:
    """Normal, of variance 2 / inputs (He et al., 2015) and for the projection 1 / inputs."""
    random = np.random.default_rng(seed)
    shapes = [(3, 3, 1 if n == 0 else CHANNELS, CHANNELS) for n in range(CONVOLUTIONS)]
    places = (SIDE // 2**CONVOLUTIONS) ** 2

    def normal(shape: tuple[int, ...], gain: float) -> np.ndarray:
        deviation = math.sqrt(gain / math.prod(shape[:-1]))
        return random.normal(0, deviation, shape).astype(np.float32)

    return [*(normal(shape, 2) for shape in shapes), normal((places * CHANNELS, WIDTH), 1)]


def scaled(images: np.ndarray) -> np.ndarray:
    """[n, SIDE, SIDE] uint8 -> float32 from -1 to 1."""
    return images.astype(np.float32) / 127.5 - 1


def run(
    task: Task,
    step: Callable[[np.ndarray, np.ndarray, float], float],
    embed: Callable[[np.ndarray], np.ndarray],
    output: Path,
) -> None:
    """Trains, embeds the unseen images, and writes both losses and times.

    Args:
      task: the input.
      step: of images [b, SIDE, SIDE] float32, labels [b] and a learning rate; returns the loss.
      embed: of images [n, SIDE, SIDE] float32, gives [n, WIDTH].
      output: an .npz file of "embeddings", "losses" and the "seconds" of each step but the first
        ones.
    """
    losses, seconds = [], []
    for number, rows in enumerate(task.batches):
        images, labels = scaled(task.images[rows]), task.labels[rows]
        rate = PEAK_RATE * 0.5 * (1 + math.cos(math.pi * number / len(task.batches)))
        began = time.perf_counter()
        losses.append(step(images, labels, rate))
        seconds.append(time.perf_counter() - began)
    parts = [
        embed(scaled(part)) for part in np.array_split(task.unseen, len(task.unseen) // 256 + 1)
    ]
    np.savez(
        output,
        embeddings=np.concatenate(parts),
        losses=losses,
        seconds=seconds[WARM_UP:] or seconds,
    )
