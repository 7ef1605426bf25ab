"""Does mining over all replicas pay? The trainer, mining over all four or within each."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import print_columns

REPLICAS = 4
COMMON = {
    "make_strategy.cpu_replicas": REPLICAS,
    "build_model.image_size": 28,
    "build_model.embedding_dim": 64,
    "Augmentation.class_turns": False,
    "Augmentation.class_mirrors": False,
    "train.average_decay": None,
}
LOSSES: dict[str, dict[str, object]] = {
    "semi-hard": {
        "semihard_triplets.margin": 0.2,
        "WarmupCosine.peak": 3e-3,
    },
    "hard": {
        "train.triplets": "@hard_triplets",
        "hard_triplets.soft": True,
        "hard_triplets.distance_metric": "'squared-L2'",
        "WarmupCosine.peak": 3e-4,
    },
}


def replicas(flags: argparse.Namespace) -> None:
    """The same batches and steps, for each seed.

    From scratch the hard loss collapses here, so it goes on from a model of the semi-hard one.
    """
    with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
        if "hard" in flags.losses:
            print("replicas: what the hard loss goes on from", file=sys.stderr)
            start = map_at_r(flags, {**COMMON, **LOSSES["semi-hard"]}, folder)
            print(f"before the hard loss: MAP@R {start:.3f}")
        _compare(flags, folder)


def _compare(flags: argparse.Namespace, begun: str) -> None:
    rows = []
    for loss in flags.losses:
        params = {**LOSSES[loss], **({"train.init_from": repr(begun)} if loss == "hard" else {})}
        found: dict[bool, list[float]] = {True: [], False: []}
        name = "semihard_triplets" if loss == "semi-hard" else "hard_triplets"
        for seed in range(flags.seeds):
            for across, scores in found.items():
                print(f"replicas: {loss}, seed {seed}, across {across}", file=sys.stderr)
                here = {"SEED": seed, f"{name}.across_replicas": across}
                with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
                    scores.append(map_at_r(flags, {**COMMON, **params, **here}, folder))
        for across, scores in found.items():
            where = f"over all {REPLICAS} replicas" if across else "within each replica"
            each = (f"{score:.3f}" for score in scores)
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            mean = f"{statistics.mean(scores):.4f}", f"{spread:.4f}"
            rows.append((f"{loss}, mined {where}", (*mean, *each)))
    columns = ("mean", "deviation", *(f"seed {seed}" for seed in range(flags.seeds)))
    print_columns(f"MAP@R on test after {flags.steps:,} steps", columns, rows)


def map_at_r(flags: argparse.Namespace, params: dict[str, object], folder: str) -> float:
    """Trains and evaluates with `trainer.main`, into a folder."""
    steps = {
        "STEPS": flags.steps,
        "train.evaluate_every": flags.steps,
        "WarmupCosine.warmup_steps": flags.steps // 10,
    }
    plan = {
        "BatchPlan.classes_per_batch": flags.classes,
        "BatchPlan.images_per_class": flags.images,
    }
    command = [
        sys.executable,
        *("-m", "trainer.main", "--gin_file=gin/omniglot_small_conv.gin"),
        *(f"--data_dir={flags.data_dir}", f"--model_dir={folder}"),
        *(f"--gin_param={name} = {value}" for name, value in {**plan, **steps, **params}.items()),
    ]
    subprocess.run(command, stdout=sys.stderr, check=True)
    table = json.loads(Path(folder, "evaluation", "test.json").read_text())
    return table["results"]["trained model"]["map_at_r"]
