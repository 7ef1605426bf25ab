"""How rows get from replica to replica: all_gather against all_reduce of zeros with own rows in.

python -m benchmarks.transports [REPLICAS ...]

Each number of replicas runs in a process of its own: TensorFlow's collectives take only one.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import tensorflow as tf

from benchmarks.timing import print_table, rates
from trainer.distributed.strategy import make_strategy
from tripletmill.cli.arguments import Parser, positive
from tripletmill.losses.global_batch import gather

ROWS, DIM, STEPS = 4096, 128, 10
TRANSPORTS = ("all_gather", "all_reduce")


def contestant(strategy: tf.distribute.Strategy, transport: str) -> Callable[[], int]:
    """Steps of gathering and of the gradient's way back."""
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
            for share in strategy.experimental_local_results(step(embeddings)):
                share.numpy()
        return STEPS

    return run


def measure(replicas: int) -> None:
    gpus = tf.config.list_physical_devices("GPU")
    strategy = (
        tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas)])
        if gpus
        else make_strategy(cpu_replicas=replicas)
    )
    names = {f"{name}, with gradient": contestant(strategy, name) for name in TRANSPORTS}
    kind = "GPUs" if gpus else "logical CPU devices"
    print_table(
        f"[{ROWS}, {DIM}] float32 on {replicas} {kind}", rates(names, rounds=20), unit="steps"
    )


def main() -> None:
    parser = Parser(prog="python -m benchmarks.transports")
    parser.add_argument("replicas", type=positive, nargs="*", default=[2, 4])
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
