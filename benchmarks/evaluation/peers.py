"""Compares our retrieval metrics with pytorch-metric-learning's AccuracyCalculator."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.evaluation.torch_child import NAMES
from benchmarks.processes import peer_python, run_module
from benchmarks.tables import Row, print_columns
from trainer.retrieval.matches import Gallery
from trainer.retrieval.metrics import RetrievalMetrics, retrieval_metrics

MODULE = "benchmarks.evaluation.torch_child"


def example() -> dict[str, np.ndarray]:
    """Makes queries [90, 8] and a gallery [150, 8], with labels, in classes of unequal size.

    Some classes have a single row, and some are missing among the queries or in the gallery.
    """
    rng = np.random.default_rng(7)
    labels = np.minimum(rng.geometric(0.12, 240), 14)
    centres = rng.normal(size=(15, 8))
    rows = (centres[labels] + 0.8 * rng.normal(size=(240, 8))).astype(np.float32)
    return {
        "queries": rows[:90],
        "query_labels": labels[:90],
        "gallery": rows[90:],
        "gallery_labels": labels[90:],
    }


def our_metrics(arrays: dict[str, np.ndarray]) -> dict[str, RetrievalMetrics]:
    """Evaluates the queries against each other, and against the gallery."""
    queries = arrays["queries"], arrays["query_labels"]
    gallery = Gallery(arrays["gallery"], arrays["gallery_labels"])
    return {
        "all against all": retrieval_metrics(*queries),
        "query against gallery": retrieval_metrics(*queries, gallery=gallery),
    }


def peer_metrics(arrays: dict[str, np.ndarray], python: Path) -> dict[str, list[float]]:
    """Returns the peer's values for each key of `our_metrics`, in the order of NAMES."""
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        arrays_file, metrics_file = Path(folder, "arrays.npz"), Path(folder, "metrics.json")
        np.savez(arrays_file, allow_pickle=False, **arrays)
        run_module(python, MODULE, str(arrays_file), str(metrics_file))
        return json.loads(metrics_file.read_text())


def peers(flags: argparse.Namespace) -> None:
    """Prints our values, the peer's values and their differences."""
    arrays = example()
    python = peer_python("torch", flags.peers)
    peer_values = peer_metrics(arrays, python) if python else {}
    rows: list[Row] = []
    for protocol, metrics in our_metrics(arrays).items():
        ours = [metrics.mean[name] for name in NAMES.values()]
        rows.append((protocol, [f"{value:.7f}" for value in ours]))
        if protocol not in peer_values:
            rows.append(("  pytorch-metric-learning", ["absent", *[None] * (len(ours) - 1)]))
            continue
        theirs = peer_values[protocol]
        rows.append(("  pytorch-metric-learning", [f"{value:.7f}" for value in theirs]))
        differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        rows.append(("  apart by", [f"{value:.0e}" for value in differences]))
    print_columns("Values", ["Recall@1", "R-prec.", "MAP@R", "MRR"], rows)
