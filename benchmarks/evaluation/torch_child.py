"""Metrics of pytorch-metric-learning, in its own environment: GIVEN.npz FOUND.json."""

import json
import sys
from pathlib import Path

import numpy as np

# Their names, and ours.
NAMES = {
    "precision_at_1": "recall_at_1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "map_at_r",
    "mean_reciprocal_rank": "mean_reciprocal_rank",
}


def main() -> None:
    import torch
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    def accuracy(rows: int, *of: np.ndarray, **how: bool) -> list[float]:
        # By Euclidean distance, of the embeddings as they are; deep enough for every first match.
        calculator = AccuracyCalculator(
            include=tuple(NAMES),
            k=rows,
            knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
            device=torch.device("cpu"),
        )
        found = calculator.get_accuracy(*map(torch.from_numpy, of), **how)
        return [found[name] for name in NAMES]

    with np.load(sys.argv[1]) as of:
        own = (of["queries"].astype(np.float64), of["labels"])
        others = (of["gallery"].astype(np.float64), of["kept"])
    found = {
        "all against all": accuracy(len(own[0]) - 1, *own),
        "query against gallery": accuracy(len(others[0]), *own, *others),
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
