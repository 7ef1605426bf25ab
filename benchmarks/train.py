"""The trainer against a bare loop, what mining takes of a step, and how long a run takes to start.

python -m benchmarks.train [--parts speed step start] [--images=FOLDER]
"""

import argparse
import contextlib
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.input.data import SPLIT, DataSet, make
from benchmarks.timing import machine, print_columns, rates, turns
from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan
from trainer.data.reading import FileRecords
from trainer.distributed.strategy import make_strategy
from trainer.evaluation.inference import SplitImages
from trainer.models.embedding_model import build_model
from trainer.training.gradients import make_gradients
from trainer.training.optimizers import Optimizers
from trainer.training.telemetry import Telemetry
from trainer.training.train_loop import TrainLoop
from tripletmill.cli.arguments import Parser, positive
from tripletmill.formats.index import load_index
from tripletmill.losses.triplet import semihard_triplets

TRIPLETS = functools.partial(semihard_triplets, margin=0.2, distance_metric="squared-L2")
# Backbone, side of the crops, classes and images of each in a batch, steps of a turn.
MODELS = {
    "small_conv, 48 px, 32 x 8": ("small_conv", 48, 32, 8, 40),
    "efficientnet_lite0, 128 px, 16 x 4": ("efficientnet_lite0", 128, 16, 4, 20),
}
STEPS_PER_LOOP = 10
DIM, GLOBAL_BATCH, RESNET_IMAGES = 128, 1024, 8
CHILD_STEPS = 20
PARTS = ("speed", "step", "start")


def speed(flags: argparse.Namespace, data: Path) -> None:
    """The whole trainer and a bare loop, in turns."""
    rows = []
    for name, (backbone, side, classes, images, steps) in MODELS.items():
        folder = data.parent / backbone
        folder.mkdir()
        contestants = {
            "the trainer": trainer(data, folder, backbone, side, classes, images, steps),
            "bare loop, random images in memory": bare(backbone, side, classes, images, steps),
        }
        print(f"speed: {name}", file=sys.stderr)
        found = rates(contestants, rounds=flags.rounds)
        base = [*found.values()][-1]
        rows += [(f"{name}: {who}", (rate, rate / base)) for who, rate in found.items()]
    print_columns("Images a second", ("images/s", "x"), rows)


def trainer(
    data: Path, folder: Path, backbone: str, side: int, classes: int, images: int, steps: int
) -> Callable[[], int]:
    """Training as `trainer.main` does between two evaluations, with its telemetry."""
    index = load_index(str(data), SPLIT)
    plan = BatchPlan(index, classes_per_batch=classes, images_per_class=images)
    strategy = make_strategy(name="one_device")
    with strategy.scope():
        model = build_model(backbone=backbone, image_size=side, embedding_dim=DIM)
        optimizers = Optimizers(model, lambda: keras.optimizers.AdamW(1e-4))
    training = TrainLoop(
        model=model,
        gradients=make_gradients(model, TRIPLETS),
        optimizers=optimizers,
        images=SplitImages(
            index,
            FileRecords(index),
            image_size=side,
            central_share=1.0,
            batch_size=plan.batch_size,
            strategy=strategy,
        ),
        plan=plan,
        augmentation=Augmentation(),
        steps_per_loop=STEPS_PER_LOOP,
        telemetry=Telemetry(str(folder), first_step=0, steps=10**6),
        model_dir=str(folder),
        should_stop=lambda: False,
    )
    done = 0

    def run() -> int:
        nonlocal done
        done, _ = training.run(done, done + steps, None)
        return steps * plan.batch_size

    return run


def bare(backbone: str, side: int, classes: int, images: int, steps: int) -> Callable[[], int]:
    """The same forward and backward pass, as few lines as anyone would write."""
    model = build_model(backbone=backbone, image_size=side, embedding_dim=DIM)
    optimizer = keras.optimizers.AdamW(1e-4)
    optimizer.build(model.trainable_variables)
    batch = classes * images
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    inputs, labels = tf.constant(pixels), tf.constant(np.arange(batch) // images, tf.int32)

    @tf.function
    def loop(count: tf.Tensor) -> tf.Tensor:
        loss = 0.0
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                loss = TRIPLETS(labels, model(inputs, training=True)).loss
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    def run() -> int:
        for _ in range(steps // STEPS_PER_LOOP):
            loop(tf.constant(STEPS_PER_LOOP)).numpy()
        return steps * batch

    return run


def step(flags: argparse.Namespace, _: Path) -> None:
    """Gather, mining and loss at a large batch beside a ResNet-50."""
    model = build_model(backbone="resnet50", image_size=224, embedding_dim=DIM)
    multiply_adds = forward_flops(model) / 2
    weights = [v.value for v in model.trainable_variables]
    images = tf.constant(
        np.random.default_rng(0).integers(0, 256, (RESNET_IMAGES, 224, 224, 3), np.uint8)
    )

    @tf.function
    def forward_and_backward() -> tf.Tensor:
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model(images, training=True)[:, 0])
        return tf.add_n([tf.reduce_sum(g) for g in tape.gradient(total, weights)])

    print("step: ResNet-50", file=sys.stderr)
    seconds = timed(lambda: forward_and_backward().numpy(), flags.rounds)
    network = seconds / RESNET_IMAGES * GLOBAL_BATCH
    # Distances, and their gradient to anchors and to candidates.
    flops = 3 * 2 * GLOBAL_BATCH**2 * DIM
    share = flops / (3 * 2 * multiply_adds * GLOBAL_BATCH)
    rows: list[tuple[str, tuple[float | str | None, ...]]] = [
        (f"ResNet-50, 224 px, {GLOBAL_BATCH:,} images", (network, None, None))
    ]
    for replicas in (1, 4):
        print(f"step: {replicas} replicas", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.train", "--replicas", str(replicas)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = float(done.stdout.split()[-1])
        shown = (taken, f"{taken / network:.3%}", f"{share:.4%}")
        rows.append((f"gather, mining, loss, gradient, {replicas} replicas", shown))
    print_columns(f"Of a step of {GLOBAL_BATCH:,} images", ("seconds", "of time", "of flops"), rows)
    print(
        f"  ResNet-50: {multiply_adds / 1e9:.1f} billion multiply-adds forward an image, thrice for"
        f" both ways; timed with {RESNET_IMAGES}\n  images; replicas are logical devices of the"
        " same cores"
    )


def forward_flops(model: keras.Model) -> float:
    """Of one image."""
    shape = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(shape).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return float(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


def mining_seconds(replicas: int) -> float:
    """Of gathering, mining, loss and gradient of a global batch."""
    strategy = make_strategy(cpu_replicas=replicas)
    rows = GLOBAL_BATCH // replicas
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(replicas, rows, DIM)).astype(np.float32)
    embeddings = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
    labels = tf.constant(np.arange(rows) // 4, tf.int32)

    def replica(x: tf.Tensor) -> tf.Tensor:
        x = tf.math.l2_normalize(tf.identity(x), axis=1)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = TRIPLETS(labels, x).loss
        return tf.reduce_sum(tape.gradient(loss, x))

    run = tf.function(lambda x: strategy.run(replica, args=(x,)), autograph=False)

    def once() -> None:
        for share in strategy.experimental_local_results(run(embeddings)):
            share.numpy()

    return timed(once, CHILD_STEPS)


def timed(run: Callable[[], object], rounds: int) -> float:
    """Median seconds."""

    def turn() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return statistics.median(turns({"": turn}, rounds=rounds)[""])


def start(flags: argparse.Namespace, data: Path) -> None:
    """Seconds from the command to the end of its first step, by what it has written by then."""
    found: dict[str, list[float]] = {}
    for turn in range(flags.rounds):
        for name, (backbone, side, classes, images, _) in MODELS.items():
            print(f"start: round {turn + 1} of {flags.rounds}: {name}", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix="train-") as folder:
                began = time.perf_counter()
                metrics = Path(folder, "metrics.jsonl")
                with running(start_command(data, folder, backbone, side, classes, images)) as run:
                    while not (metrics.exists() and metrics.stat().st_size):
                        if run.poll() is not None:
                            raise RuntimeError(f"{name}: ended before its first step")
                        time.sleep(0.01)
                    found.setdefault(name, []).append(time.perf_counter() - began)
    rows = [(name, (statistics.median(seconds),)) for name, seconds in found.items()]
    print_columns("From the command to the end of the first step", ("seconds",), rows)


def start_command(
    data: Path, folder: str, backbone: str, side: int, classes: int, images: int
) -> list[str]:
    params = {
        "build_model.backbone": repr(backbone),
        "build_model.image_size": side,
        "BatchPlan.classes_per_batch": classes,
        "BatchPlan.images_per_class": images,
        "train.steps_per_loop": 1,
        "evaluate.split": "'train'",
    }
    return [
        sys.executable,
        *("-m", "trainer.main", "--gin_file=gin/small_conv.gin"),
        *(f"--data_dir={data}", f"--model_dir={folder}"),
        *(f"--gin_param={name} = {value}" for name, value in params.items()),
    ]


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="all without it")
    add("--images", type=Path, help="a folder of JPEGs, in any folders; synthetic ones without")
    add("--rounds", default=5, type=positive, metavar="N", help="turns of each (5)")
    add("--replicas", type=positive, metavar="N", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    flags = parse()
    if flags.replicas:
        print(mining_seconds(flags.replicas))
        return
    tf.get_logger().setLevel("ERROR")
    print(f"Training ({machine()})")
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        photos = DataSet(side=144, classes=100, images_per_class=20)
        if {*flags.parts} - {"step"}:
            make(Path(folder), [photos], images=flags.images, class_files=0)
        for part in flags.parts:
            {"speed": speed, "step": step, "start": start}[part](flags, photos.path(Path(folder)))


if __name__ == "__main__":
    main()
