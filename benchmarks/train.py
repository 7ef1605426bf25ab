"""Measures the trainer: its speed, the share of mining in a step, and the time to start a run.

python -m benchmarks.train [--parts speed step start] [--images=FOLDER]

speed: images per second of the trainer and of a bare training loop.
step: the time for gathering, mining and loss, beside that of a ResNet-50.
start: seconds from the command to the end of the first training step.
"""

import argparse
import contextlib
import dataclasses
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
from benchmarks.processes import trainer_command
from benchmarks.tables import Row, machine, print_columns, progress
from benchmarks.timing import median_seconds, rates
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


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is trained, and on which batches.

    Attributes:
      backbone: the name that `build_model` takes.
      image_size: pixels.
      classes: classes in a batch.
      images: images of each class in a batch.
      steps: training steps in one turn.
    """

    backbone: str
    image_size: int
    classes: int
    images: int
    steps: int

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.classes * self.images


SETUPS = {
    "small_conv, 48 px, 32 x 8": Setup("small_conv", 48, 32, 8, steps=40),
    "efficientnet_lite0, 128 px, 16 x 4": Setup("efficientnet_lite0", 128, 16, 4, steps=20),
}
STEPS_PER_LOOP = 10
DIM, GLOBAL_BATCH, RESNET_IMAGES = 128, 1024, 8
CHILD_STEPS = 20
PARTS = ("speed", "step", "start")


def speed(flags: argparse.Namespace, data: Path) -> None:
    """Prints the images per second of the whole trainer and of a bare loop."""
    rows: list[Row] = []
    for name, setup in SETUPS.items():
        model_dir = data.parent / setup.backbone
        model_dir.mkdir()
        contestants = {
            "the trainer": trainer_turn(setup, data, model_dir),
            "bare loop, random images in memory": bare_turn(setup),
        }
        progress(f"speed: {name}")
        images_per_second = rates(contestants, rounds=flags.rounds)
        base = [*images_per_second.values()][-1]
        rows += [
            (f"{name}: {contestant}", (rate, rate / base))
            for contestant, rate in images_per_second.items()
        ]
    print_columns("Images a second", ("images/s", "x"), rows)


def trainer_turn(setup: Setup, data: Path, model_dir: Path) -> Callable[[], int]:
    """Returns a function that trains as `trainer.main` does between two evaluations.

    Telemetry is included. The function returns the number of images.
    """
    index = load_index(str(data), SPLIT)
    plan = BatchPlan(index, classes_per_batch=setup.classes, images_per_class=setup.images)
    strategy = make_strategy(name="one_device")
    with strategy.scope():
        model = build_model(backbone=setup.backbone, image_size=setup.image_size, embedding_dim=DIM)
        optimizers = Optimizers(model, lambda: keras.optimizers.AdamW(1e-4))
    training = TrainLoop(
        model=model,
        gradients=make_gradients(model, TRIPLETS),
        optimizers=optimizers,
        images=SplitImages(
            index,
            FileRecords(index),
            image_size=setup.image_size,
            central_share=1.0,
            batch_size=plan.batch_size,
            strategy=strategy,
        ),
        plan=plan,
        augmentation=Augmentation(),
        steps_per_loop=STEPS_PER_LOOP,
        telemetry=Telemetry(str(model_dir), first_step=0, steps=10**6),
        model_dir=str(model_dir),
        should_stop=lambda: False,
    )
    step = 0

    def run() -> int:
        nonlocal step
        step, _ = training.run(step, step + setup.steps, None)
        return setup.steps * setup.batch_size

    return run


def bare_turn(setup: Setup) -> Callable[[], int]:
    """Returns a function that trains the model of `trainer_turn` in a minimal loop.

    The images are random and stay in memory. The function returns the number of images.
    """
    model = build_model(backbone=setup.backbone, image_size=setup.image_size, embedding_dim=DIM)
    optimizer = keras.optimizers.AdamW(1e-4)
    optimizer.build(model.trainable_variables)
    shape = (setup.batch_size, setup.image_size, setup.image_size, 3)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    labels = tf.constant(np.arange(setup.batch_size) // setup.images, tf.int32)

    @tf.function
    def loop(count: tf.Tensor) -> tf.Tensor:
        loss = 0.0
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                loss = TRIPLETS(labels, model(images, training=True)).loss
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    def run() -> int:
        for _ in range(setup.steps // STEPS_PER_LOOP):
            loop(tf.constant(STEPS_PER_LOOP)).numpy()
        return setup.steps * setup.batch_size

    return run


def step(flags: argparse.Namespace, _: Path) -> None:
    """Prints how much of a large batch's step goes to gathering, mining and loss.

    The rest of the step is a ResNet-50, which is timed on RESNET_IMAGES images and scaled up.
    """
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

    progress("step: ResNet-50")
    seconds = median_seconds(lambda: forward_and_backward().numpy(), rounds=flags.rounds)
    network_seconds = seconds / RESNET_IMAGES * GLOBAL_BATCH
    # One product for the distances, and two for their gradients (anchors and candidates).
    flops = 3 * 2 * GLOBAL_BATCH**2 * DIM
    share_of_flops = flops / (3 * 2 * multiply_adds * GLOBAL_BATCH)
    rows: list[Row] = [
        (f"ResNet-50, 224 px, {GLOBAL_BATCH:,} images", (network_seconds, None, None))
    ]
    for replicas in (1, 4):
        progress(f"step: {replicas} replicas")
        command = [sys.executable, "-m", "benchmarks.train", "--replicas", str(replicas)]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = float(process.stdout.split()[-1])
        cells = (seconds, f"{seconds / network_seconds:.3%}", f"{share_of_flops:.4%}")
        rows.append((f"gather, mining, loss, gradient, {replicas} replicas", cells))
    print_columns(f"Of a step of {GLOBAL_BATCH:,} images", ("seconds", "of time", "of flops"), rows)
    print(
        f"  ResNet-50: {multiply_adds / 1e9:.1f} billion multiply-adds per image forward, three"
        f" times as many forward and backward;\n  timed with {RESNET_IMAGES} images. Replicas are"
        " logical devices on the same cores."
    )


def forward_flops(model: keras.Model) -> float:
    """Returns the floating-point operations of one image's forward pass."""
    shape = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(shape).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return float(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


def mining_seconds(replicas: int) -> float:
    """Returns the seconds for gathering, mining, loss and gradient of one global batch.

    TensorFlow's collectives accept only one number of replicas per process, so each number is
    measured in its own process.
    """
    strategy = make_strategy(cpu_replicas=replicas)
    rows = GLOBAL_BATCH // replicas
    rng = np.random.default_rng(0)
    values = rng.normal(size=(replicas, rows, DIM)).astype(np.float32)
    embeddings = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(values[context.replica_id_in_sync_group])
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
        for gradient_sum in strategy.experimental_local_results(run(embeddings)):
            gradient_sum.numpy()

    return median_seconds(once, rounds=CHILD_STEPS)


def start(flags: argparse.Namespace, data: Path) -> None:
    """Prints the seconds from the command to the end of the first step.

    The first step has ended when metrics.jsonl has content.
    """
    seconds: dict[str, list[float]] = {name: [] for name in SETUPS}
    for turn in range(flags.rounds):
        for name, setup in SETUPS.items():
            progress(f"start: round {turn + 1} of {flags.rounds}: {name}")
            with tempfile.TemporaryDirectory(prefix="train-") as model_dir:
                start_time = time.perf_counter()
                metrics = Path(model_dir, "metrics.jsonl")
                with running(start_command(setup, data, model_dir)) as process:
                    while not (metrics.exists() and metrics.stat().st_size):
                        if process.poll() is not None:
                            raise RuntimeError(f"{name}: the trainer ended before its first step")
                        time.sleep(0.01)
                    seconds[name].append(time.perf_counter() - start_time)
    rows = [(name, (statistics.median(values),)) for name, values in seconds.items()]
    print_columns("From the command to the end of the first step", ("seconds",), rows)


def start_command(setup: Setup, data: Path, model_dir: str) -> list[str]:
    """Returns the command that trains a setup and writes metrics after each step."""
    params = {
        "build_model.backbone": repr(setup.backbone),
        "build_model.image_size": setup.image_size,
        "BatchPlan.classes_per_batch": setup.classes,
        "BatchPlan.images_per_class": setup.images,
        "train.steps_per_loop": 1,
        "evaluate.split": "'train'",
    }
    return trainer_command("gin/small_conv.gin", data_dir=data, model_dir=model_dir, params=params)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen]:
    """Starts a process and kills it when the block ends."""
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
    add("--parts", default=[*PARTS], choices=PARTS, nargs="+", help="default: all")
    add("--images", type=Path, help="a folder with JPEGs, at any depth; default: synthetic")
    add("--rounds", default=5, type=positive, metavar="N", help="turns of each contestant (5)")
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
