"""The same embeddings to pytorch-metric-learning's AccuracyCalculator and to ours."""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.evaluation.torch_child import NAMES
from benchmarks.mining.processes import ROOT, SETTINGS, interpreter
from benchmarks.timing import print_columns
from trainer.retrieval.matches import Gallery
from trainer.retrieval.metrics import RetrievalMetrics, retrieval_metrics

MODULE = "benchmarks.evaluation.torch_child"


def example() -> dict[str, np.ndarray]:
    """Queries [90, 8] and a gallery [150, 8] of unequal classes, some of one row, some lacking."""
    rng = np.random.default_rng(7)
    labels = np.minimum(rng.geometric(0.12, 240), 14)
    centres = rng.normal(size=(15, 8))
    rows = (centres[labels] + 0.8 * rng.normal(size=(240, 8))).astype(np.float32)
    return {"queries": rows[:90], "labels": labels[:90], "gallery": rows[90:], "kept": labels[90:]}


def ours(of: dict[str, np.ndarray]) -> dict[str, RetrievalMetrics]:
    """Queries against each other, and against the gallery."""
    gallery = Gallery(of["gallery"], of["kept"])
    return {
        "all against all": retrieval_metrics(of["queries"], of["labels"]),
        "query against gallery": retrieval_metrics(of["queries"], of["labels"], gallery=gallery),
    }


def theirs(of: dict[str, np.ndarray], python: Path) -> dict[str, list[float]]:
    """The same of theirs, in the order of NAMES."""
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        given, found = Path(folder, "given.npz"), Path(folder, "found.json")
        np.savez(given, allow_pickle=False, **of)
        command = [str(python), "-m", MODULE, str(given), str(found)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **SETTINGS}, check=True)
        return json.loads(found.read_text())


def peers(flags: argparse.Namespace) -> None:
    """Prints both, and how far they are apart."""
    of = example()
    python = interpreter("torch", flags.peers)
    peer = theirs(of, python) if python else {}
    rows: list[tuple[str, list[float | str | None]]] = []
    for protocol, metrics in ours(of).items():
        own = [metrics.mean[name] for name in NAMES.values()]
        rows.append((protocol, [f"{value:.7f}" for value in own]))
        if protocol not in peer:
            rows.append(("  pytorch-metric-learning", ["absent", *[None] * (len(own) - 1)]))
            continue
        rows.append(("  pytorch-metric-learning", [f"{value:.7f}" for value in peer[protocol]]))
        apart = [abs(a - b) for a, b in zip(own, peer[protocol], strict=True)]
        rows.append(("  apart by", [f"{value:.0e}" for value in apart]))
    print_columns("Values", ["Recall@1", "R-prec.", "MAP@R", "MRR"], rows)
