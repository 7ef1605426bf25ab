"""Computes neighbours and metrics on several replicas, for test_replicas.py.

python -m tests.trainer.retrieval.replicas OUT REPLICAS

REPLICAS is "workers" in a process of a cluster.
"""

import sys

import numpy as np
import tensorflow as tf

from tests.trainer.replicas import mirrored
from tests.trainer.retrieval.data import unbalanced
from trainer.retrieval import nearest_neighbours, retrieval_metrics


def main(out: str, replicas: str) -> None:
    if replicas == "workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = mirrored(int(replicas))
    embeddings, labels = unbalanced()
    embeddings[20:30] = embeddings[5]
    tiles = {"strategy": strategy, "query_tile": 9, "gallery_tile": 30}
    found = nearest_neighbours(embeddings, 7, **tiles)
    metrics = retrieval_metrics(embeddings, labels, **tiles)
    np.savez(out, rows=found.rows, distances=found.distances, **metrics.of_queries)


if __name__ == "__main__":
    main(*sys.argv[1:])
