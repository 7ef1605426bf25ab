"""The same plain network, start, batches and steps with other libraries' triplet losses."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.mining.processes import ROOT, SETTINGS, interpreter
from benchmarks.retrieval.plain import SIDE, Task, start_weights
from benchmarks.timing import print_columns
from trainer.data.batch_plan import BatchPlan
from trainer.data.reading import FileRecords
from trainer.evaluation.inference import SplitImages, compile_on_replicas
from trainer.retrieval.metrics import retrieval_metrics
from tripletmill.formats.index import DatasetIndex, load_index

TENSORFLOW, TORCH = "benchmarks.retrieval.tensorflow_child", "benchmarks.retrieval.torch_child"
# Title, environment, module of the child, its name for the loss.
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
    """Each in a process of its own environment, one after the other."""
    test = load_index(str(flags.data_dir), "test")
    rows: list[tuple[str, tuple[float | str | None, ...]]] = []
    with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
        task = Path(folder, "task.npy")
        make_task(flags, test).save(task)
        for title, environment, module, name in ENTRIES:
            python = interpreter(environment, flags.peers)
            if python is None:
                rows.append((title, ("absent", *[None] * (len(COLUMNS) - 1))))
                continue
            print(f"peers: {name}", file=sys.stderr)
            output = Path(folder, f"{name}.npz")
            command = [str(python), "-m", module, name, str(task), str(output)]
            environ = {**os.environ, **SETTINGS}
            subprocess.run(command, cwd=ROOT, env=environ, stdout=sys.stderr, check=True)
            with np.load(output) as found:
                metrics = retrieval_metrics(found["embeddings"], test.label, recall_at=(1,))
                losses, step = found["losses"], statistics.median(found["seconds"].tolist())
            shown = (
                metrics.map_at_r,
                metrics.mean["recall_at_1"],
                *losses[:2],
                losses[-50:].mean(),
            )
            score, recall, first, second, last = (f"{value:.4f}" for value in shown)
            rows.append((title, (score, recall, 1e3 * step, first, second, last)))
    steps, batch = flags.steps, flags.classes * flags.images
    print_columns(f"Test after {steps:,} steps of {batch} images; losses of steps", COLUMNS, rows)


def make_task(flags: argparse.Namespace, test: DatasetIndex) -> Task:
    """Images, batches and weights."""
    train = load_index(str(flags.data_dir), "train")
    plan = BatchPlan(train, classes_per_batch=flags.classes, images_per_class=flags.images)
    batches = np.stack([plan.batch(step) for step in range(flags.steps)])
    return Task(grey(train), train.label, batches, grey(test), start_weights(seed=0))


def grey(index: DatasetIndex) -> np.ndarray:
    """[N, SIDE, SIDE] uint8, the red of each image."""
    images = SplitImages(
        index, FileRecords(index), image_size=SIDE, central_share=1.0, batch_size=256
    )
    red = compile_on_replicas(tf.distribute.get_strategy(), lambda images: images[..., 0])
    return images.apply(red, index.split)[0]
