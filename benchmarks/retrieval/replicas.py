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
        "WarmupCosine.peak": 1e-3,
    },
}


def replicas(flags: argparse.Namespace) -> None:
    """The same batches and steps, for each seed."""
    rows = []
    for loss in flags.losses:
        params = LOSSES[loss]
        found: dict[bool, list[float]] = {True: [], False: []}
        name = "semihard_triplets" if loss == "semi-hard" else "hard_triplets"
        for seed in range(flags.seeds):
            for across, scores in found.items():
                print(f"replicas: {loss}, seed {seed}, across {across}", file=sys.stderr)
                here = {"SEED": seed, f"{name}.across_replicas": across}
                scores.append(map_at_r(flags, {**COMMON, **params, **here}))
        for across, scores in found.items():
            where = f"over all {REPLICAS} replicas" if across else "within each replica"
            each = (f"{score:.3f}" for score in scores)
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            mean = f"{statistics.mean(scores):.4f}", f"{spread:.4f}"
            rows.append((f"{loss}, mined {where}", (*mean, *each)))
    columns = ("mean", "deviation", *(f"seed {seed}" for seed in range(flags.seeds)))
    print_columns(f"MAP@R on test after {flags.steps:,} steps", columns, rows)


def map_at_r(flags: argparse.Namespace, params: dict[str, object]) -> float:
    """Trains and evaluates with `trainer.main`."""
    steps = {
        "STEPS": flags.steps,
        "train.evaluate_every": flags.steps,
        "WarmupCosine.warmup_steps": flags.steps // 10,
    }
    plan = {
        "BatchPlan.classes_per_batch": flags.classes,
        "BatchPlan.images_per_class": flags.images,
    }
    with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
        command = [
            sys.executable,
            *("-m", "trainer.main", "--gin_file=gin/omniglot_small_conv.gin"),
            *(f"--data_dir={flags.data}", f"--model_dir={folder}"),
            *(
                f"--gin_param={name} = {value}"
                for name, value in {**plan, **steps, **params}.items()
            ),
        ]
        subprocess.run(command, stdout=sys.stderr, check=True)
        table = json.loads(Path(folder, "evaluation", "test.json").read_text())
    return table["results"]["trained model"]["map_at_r"]
