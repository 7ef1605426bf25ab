"""Compares two ways to gather all replicas' rows: all_gather, and all_reduce of padded rows.

python -m benchmarks.transports [REPLICAS ...]

For all_reduce, each replica puts its rows into a tensor of zeros; the sum holds the rows of all
replicas. Each number of replicas runs in its own process, because TensorFlow's collectives accept
only one number of replicas per process.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import tensorflow as tf

from benchmarks.tables import print_rates
from benchmarks.timing import rates
from trainer.distributed.strategy import make_strategy
from tripletmill.cli.arguments import Parser, positive
from tripletmill.losses.global_batch import gather

ROWS, DIM, STEPS = 4096, 128, 10
TRANSPORTS = ("all_gather", "all_reduce")


def contestant(strategy: tf.distribute.Strategy, transport: str) -> Callable[[], int]:
    """Returns a function that runs STEPS steps of gathering and its gradient."""
    rows = ROWS // strategy.num_replicas_in_sync

    def replica_step(embeddings: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            batch = gather(tf.zeros([rows], tf.int32), embeddings, transport=transport)
            loss = tf.reduce_sum(tf.square(batch.embeddings))
        return tf.reduce_sum(tape.gradient(loss, embeddings))

    step = tf.function(lambda x: strategy.run(replica_step, args=(x,)), autograph=False)
    embeddings = strategy.experimental_distribute_values_from_function(
        lambda context: tf.random.stateless_normal(
            [rows, DIM], [0, context.replica_id_in_sync_group]
        )
    )

    def run() -> int:
        for _ in range(STEPS):
            for replica_sum in strategy.experimental_local_results(step(embeddings)):
                replica_sum.numpy()
        return STEPS

    return run


def measure(replicas: int) -> None:
    """Prints the table for one number of replicas: GPUs, or logical CPU devices without a GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    strategy = (
        tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas)])
        if gpus
        else make_strategy(cpu_replicas=replicas)
    )
    contestants = {f"{name}, with gradient": contestant(strategy, name) for name in TRANSPORTS}
    devices = "GPUs" if gpus else "logical CPU devices"
    title = f"[{ROWS}, {DIM}] float32 on {replicas} {devices}"
    print_rates(title, rates(contestants, rounds=20), unit="steps")


def main() -> None:
    parser = Parser(
        prog="python -m benchmarks.transports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "replicas", type=positive, nargs="*", default=[2, 4], help="numbers of replicas (2 4)"
    )
    replicas = parser.parse_args().replicas
    if len(replicas) == 1:
        measure(replicas[0])
        return
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    for number in replicas:
        command = [sys.executable, "-m", "benchmarks.transports", str(number)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
