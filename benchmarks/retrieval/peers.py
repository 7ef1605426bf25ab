"""Trains one plain network with each library's triplet losses.

All runs have the same initial weights, the same batches and the same number of steps.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.processes import peer_python, run_module
from benchmarks.retrieval.plain import SIDE, Task, initial_weights
from benchmarks.tables import Cell, Row, print_columns, progress
from trainer.data.batch_plan import BatchPlan
from trainer.data.reading import FileRecords
from trainer.evaluation.inference import SplitImages, compile_on_replicas
from trainer.retrieval.metrics import retrieval_metrics
from tripletmill.formats.index import DatasetIndex, load_index

TENSORFLOW, TORCH = "benchmarks.retrieval.tensorflow_child", "benchmarks.retrieval.torch_child"
# Row title, environment, module of the child process, and the child's name of the loss.
ENTRIES = (
    ("semi-hard, all positives", "ours", TENSORFLOW, "ours-semihard"),
    ("  TensorFlow Addons", "tfa", TENSORFLOW, "tfa-semihard"),
    ("  pytorch-metric-learning, all semi-hard triplets", "torch", TORCH, "pml-semihard"),
    ("semi-hard, farthest positive", "ours", TENSORFLOW, "ours-farthest"),
    ("  TensorFlow Similarity", "tfa", TENSORFLOW, "similarity-farthest"),
    ("  pytorch-metric-learning, BatchEasyHardMiner", "torch", TORCH, "pml-farthest"),
    ("hard", "ours", TENSORFLOW, "ours-hard"),
    ("  TensorFlow Addons", "tfa", TENSORFLOW, "tfa-hard"),
    ("  TensorFlow Similarity", "tfa", TENSORFLOW, "similarity-hard"),
    ("  pytorch-metric-learning, BatchHardMiner", "torch", TORCH, "pml-hard"),
)
COLUMNS = ("MAP@R", "Recall@1", "ms a step", "step 1", "step 2", "last 50")


def peers(flags: argparse.Namespace) -> None:
    """Prints a table of all entries; each one runs in a process of its environment."""
    test = load_index(str(flags.data_dir), "test")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
        task_file = Path(folder, "task.npy")
        make_task(flags, test).save(task_file)
        for title, environment, module, name in ENTRIES:
            python = peer_python(environment, flags.peers)
            if python is None:
                rows.append((title, ("absent", *[None] * (len(COLUMNS) - 1))))
                continue
            progress(f"peers: {name}")
            output = Path(folder, f"{name}.npz")
            run_module(python, module, name, str(task_file), str(output))
            rows.append((title, _cells(output, test)))
    steps, batch = flags.steps, flags.classes * flags.images
    print_columns(
        f"Test after {steps:,} steps of {batch} images; losses at training steps", COLUMNS, rows
    )


def _cells(output: Path, test: DatasetIndex) -> tuple[Cell, ...]:
    """Evaluates what a child process wrote; returns the values for COLUMNS."""
    with np.load(output) as arrays:
        metrics = retrieval_metrics(arrays["embeddings"], test.label, recall_at=(1,))
        losses, seconds = arrays["losses"], statistics.median(arrays["seconds"].tolist())
    values = metrics.map_at_r, metrics.mean["recall_at_1"], *losses[:2], losses[-50:].mean()
    map_at_r, recall, first, second, last = (f"{value:.4f}" for value in values)
    return map_at_r, recall, 1e3 * seconds, first, second, last


def make_task(flags: argparse.Namespace, test: DatasetIndex) -> Task:
    """Reads the images of both splits, draws the batches and the initial weights."""
    train = load_index(str(flags.data_dir), "train")
    plan = BatchPlan(train, classes_per_batch=flags.classes, images_per_class=flags.images)
    batches = np.stack([plan.batch(step) for step in range(flags.steps)])
    return Task(grey(train), train.label, batches, grey(test), initial_weights(seed=0))


def grey(index: DatasetIndex) -> np.ndarray:
    """Returns the red channel of all images of a split: [N, SIDE, SIDE] uint8."""
    images = SplitImages(
        index, FileRecords(index), image_size=SIDE, central_share=1.0, batch_size=256
    )
    red = compile_on_replicas(tf.distribute.get_strategy(), lambda images: images[..., 0])
    return images.apply(red, index.split)[0]
