"""Trains the plain network with one loss of pytorch-metric-learning, in the peer's environment.

python -m benchmarks.retrieval.torch_child LOSS TASK OUTPUT
"""

import sys
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchEasyHardMiner, BatchHardMiner, TripletMarginMiner
from torch.nn import functional

from benchmarks.retrieval.plain import EPSILON, MARGIN, Task, run

# Squared distances, as in the other libraries; LpDistance scales embeddings to unit length itself.
DISTANCE = LpDistance(power=2)
MINERS = {
    "pml-semihard": lambda: TripletMarginMiner(
        margin=MARGIN, type_of_triplets="semihard", distance=DISTANCE
    ),
    "pml-farthest": lambda: BatchEasyHardMiner(
        pos_strategy="hard", neg_strategy="semihard", distance=DISTANCE
    ),
    "pml-hard": lambda: BatchHardMiner(distance=DISTANCE),
}


def main() -> None:
    name, task, output = sys.argv[1], Task.load(Path(sys.argv[2])), Path(sys.argv[3])
    miner = MINERS[name]()
    loss = TripletMarginLoss(margin=MARGIN, distance=DISTANCE)
    *kernels, projection = map(torch.from_numpy, task.weights)
    kernels = [kernel.permute(3, 2, 0, 1).contiguous().requires_grad_() for kernel in kernels]
    projection.requires_grad_()
    optimizer = torch.optim.Adam([*kernels, projection], eps=EPSILON)

    def forward(images: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(images)[:, None]
        for kernel in kernels:
            x = functional.max_pool2d(functional.relu(functional.conv2d(x, kernel, padding=1)), 2)
        x = x.permute(0, 2, 3, 1).reshape(len(images), -1) @ projection
        return functional.normalize(x)

    def step(images: np.ndarray, labels: np.ndarray, rate: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        classes, rows = torch.from_numpy(labels), forward(images)
        value = loss(rows, classes, miner(rows, classes))
        value.backward()
        optimizer.step()
        return value.item()

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return forward(images).numpy()

    run(task, step, embed, output)


if __name__ == "__main__":
    main()
