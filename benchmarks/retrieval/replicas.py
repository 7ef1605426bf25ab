"""Compares mining over all replicas with mining within each replica, with the trainer itself."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import trainer_command
from benchmarks.tables import Row, print_columns, progress

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
    """Prints MAP@R for each loss and each way of mining, on the same batches for each seed.

    From scratch the hard loss collapses here, so its runs start from a model that was trained with
    the semi-hard loss.
    """
    with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
        if "hard" in flags.losses:
            progress("replicas: the model that the hard loss starts from")
            score = map_at_r(flags, {**COMMON, **LOSSES["semi-hard"]}, folder)
            print(f"before the hard loss: MAP@R {score:.3f}")
        _compare(flags, folder)


def _compare(flags: argparse.Namespace, semi_hard_run: str) -> None:
    rows: list[Row] = []
    for loss in flags.losses:
        params = {**COMMON, **LOSSES[loss]}
        if loss == "hard":
            params["train.init_from"] = repr(semi_hard_run)
        function = "semihard_triplets" if loss == "semi-hard" else "hard_triplets"
        scores: dict[bool, list[float]] = {True: [], False: []}
        for seed in range(flags.seeds):
            for across in scores:
                progress(f"replicas: {loss}, seed {seed}, across_replicas = {across}")
                run_params = {"SEED": seed, f"{function}.across_replicas": across}
                with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
                    scores[across].append(map_at_r(flags, {**params, **run_params}, folder))
        for across, values in scores.items():
            where = f"over all {REPLICAS} replicas" if across else "within each replica"
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells = [f"{statistics.mean(values):.4f}", f"{deviation:.4f}"]
            rows.append((f"{loss}, mined {where}", cells + [f"{value:.3f}" for value in values]))
    columns = ("mean", "deviation", *(f"seed {seed}" for seed in range(flags.seeds)))
    print_columns(f"MAP@R on test after {flags.steps:,} steps", columns, rows)


def map_at_r(flags: argparse.Namespace, params: dict[str, object], folder: str) -> float:
    """Trains and evaluates with `trainer.main`; returns MAP@R on the split test.

    Args:
      flags: the command line.
      params: gin parameters.
      folder: the model_dir of the run.
    """
    steps = {
        "STEPS": flags.steps,
        "train.evaluate_every": flags.steps,
        "WarmupCosine.warmup_steps": flags.steps // 10,
    }
    plan = {
        "BatchPlan.classes_per_batch": flags.classes,
        "BatchPlan.images_per_class": flags.images,
    }
    command = trainer_command(
        "gin/omniglot_small_conv.gin",
        data_dir=flags.data_dir,
        model_dir=folder,
        params={**plan, **steps, **params},
    )
    subprocess.run(command, stdout=sys.stderr, check=True)
    evaluation = json.loads(Path(folder, "evaluation", "test.json").read_text())
    return evaluation["results"]["trained model"]["map_at_r"]
