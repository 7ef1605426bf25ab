"""Lists the losses that are compared, with their environments and their largest batches."""

import dataclasses

# The module that each environment runs as its worker.
WORKERS = {
    "ours": "benchmarks.mining.ours",
    "tfa": "benchmarks.mining.peers_tensorflow",
    "torch": "benchmarks.mining.peers_torch",
}
MATMUL = "matmul"
REPLICAS = (1, 2, 4, 8)
LARGEST = 16384


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the tables.

    Attributes:
      title: the title of the row.
      environment: a key of WORKERS.
      name: the name that the worker has for the loss.
      equals: the name of our loss with the same definition, with which the loss is compared.
      rival: the name of our loss with which the time is compared.
      most: the largest batch. Larger ones take too long or too much memory.
    """

    title: str
    environment: str
    name: str
    equals: str | None
    rival: str | None
    most: int = 4096


ENTRIES = (
    Entry("B x B matmul, forward only", "ours", MATMUL, None, None, LARGEST),
    Entry("hard", "ours", "hard", "hard", "hard", LARGEST),
    Entry("  its step under jit_compile", "ours", "hard-jit", "hard", "hard", LARGEST),
    Entry("  without XLA", "ours", "hard-no-xla", "hard", "hard"),
    Entry("  TensorFlow Addons", "tfa", "tfa-hard", "hard", "hard"),
    # It takes a minute to compile at 4096.
    Entry("  TensorFlow Addons, jit_compile", "tfa", "tfa-hard-jit", "hard", "hard", 1024),
    Entry("  TensorFlow Similarity", "tfa", "similarity-hard", "hard", "hard"),
    Entry("  pytorch-metric-learning BatchHardMiner", "torch", "pml-hard", "hard", "hard"),
    Entry("  sentence-transformers BatchHard", "torch", "st-hard", "hard", "hard"),
    Entry("semi-hard", "ours", "semihard", "semihard", "semihard", LARGEST),
    Entry("  its step under jit_compile", "ours", "semihard-jit", "semihard", "semihard", LARGEST),
    Entry("  without XLA", "ours", "semihard-no-xla", "semihard", "semihard"),
    # It takes 18 GB at 1024.
    Entry("  TensorFlow Addons", "tfa", "tfa-semihard", "semihard", "semihard", 512),
    Entry(
        "  TensorFlow Addons, jit_compile", "tfa", "tfa-semihard-jit", "semihard", "semihard", 512
    ),
    Entry("  sentence-transformers BatchSemiHard", "torch", "st-semihard", "semihard", "semihard"),
    Entry(
        "  pytorch-metric-learning, all semi-hard triplets",
        "torch",
        "pml-semihard",
        None,
        "semihard",
        2048,
    ),
    Entry("semi-hard, farthest positive only", "ours", "farthest", "farthest", "farthest", LARGEST),
    Entry("  TensorFlow Similarity", "tfa", "similarity-semihard", "farthest", "farthest"),
    # It leaves out anchors that have no negative beyond the positive.
    Entry(
        "  pytorch-metric-learning BatchEasyHardMiner", "torch", "pml-farthest", None, "farthest"
    ),
)


def share(strategy: str, replicas: int) -> str:
    """Returns the name of one replica's share of the loss "hard" or "semihard"."""
    return f"{strategy}-share-{replicas}"
