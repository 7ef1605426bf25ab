"""Random embeddings for the tests of retrieval."""

import numpy as np


def clustered(seed, sizes, dim=6, spread=0.7):
    """Classes of these sizes, each around its own centre, in random order."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(len(sizes)) * 10, sizes)
    rng.shuffle(labels)
    centres = rng.normal(size=(10 * len(sizes), dim))
    rows = centres[labels] + spread * rng.normal(size=(len(labels), dim))
    return rows.astype(np.float32), labels


def unbalanced(seed=1):
    return clustered(seed, [40, 1, 2, 17, 3, 1, 9, 5])
