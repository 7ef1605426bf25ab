"""Computes pytorch-metric-learning's metrics; runs in the peer's environment.

python -m benchmarks.evaluation.torch_child ARRAYS.npz METRICS.json
"""

import json
import sys
from pathlib import Path

import numpy as np

# The peer's name of each metric, and ours.
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

    def metrics(num_neighbours: int, *arrays: np.ndarray) -> list[float]:
        # Euclidean distance of the embeddings as they are; enough neighbours for every first match.
        calculator = AccuracyCalculator(
            include=tuple(NAMES),
            k=num_neighbours,
            knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
            device=torch.device("cpu"),
        )
        values = calculator.get_accuracy(*map(torch.from_numpy, arrays))
        return [values[name] for name in NAMES]

    with np.load(sys.argv[1]) as arrays:
        queries = (arrays["queries"].astype(np.float64), arrays["query_labels"])
        gallery = (arrays["gallery"].astype(np.float64), arrays["gallery_labels"])
    values = {
        "all against all": metrics(len(queries[0]) - 1, *queries),
        "query against gallery": metrics(len(gallery[0]), *queries, *gallery),
    }
    Path(sys.argv[2]).write_text(json.dumps(values))


if __name__ == "__main__":
    main()
