"""The worker for the peers on PyTorch: pytorch-metric-learning and sentence-transformers."""

from collections.abc import Callable

import numpy as np
import pytorch_metric_learning
import sentence_transformers
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchEasyHardMiner, BatchHardMiner, TripletMarginMiner
from pytorch_metric_learning.reducers import MeanReducer
from sentence_transformers.sentence_transformer.losses import (
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
)

from benchmarks.mining.worker import Contestant, Step, serve


def torch_step(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Contestant:
    """Returns a contestant that computes `loss(labels, embeddings)` and its gradient."""

    def contestant(labels: np.ndarray, embeddings: np.ndarray) -> Step:
        classes = torch.from_numpy(labels).long()
        rows = torch.from_numpy(embeddings).requires_grad_()

        def step() -> float:
            rows.grad = None
            value = loss(classes, rows)
            value.backward()
            return value.item()

        return step

    return contestant


def mined(miner: torch.nn.Module) -> Contestant:
    """Returns pytorch-metric-learning's loss for the triplets that a miner selects."""
    # The library's default reducer averages only over the terms above zero.
    loss = TripletMarginLoss(margin=1.0, distance=LpDistance(), reducer=MeanReducer())
    return torch_step(lambda labels, rows: loss(rows, labels, miner(rows, labels)))


def from_embeddings(loss: BatchHardTripletLoss | BatchSemiHardTripletLoss) -> Contestant:
    """Returns a loss of sentence-transformers, computed from given embeddings."""
    return torch_step(lambda labels, rows: loss.compute_loss_from_embeddings([rows], labels))


CONTESTANTS: dict[str, Contestant] = {
    "pml-hard": mined(BatchHardMiner(distance=LpDistance())),
    "pml-semihard": mined(
        TripletMarginMiner(margin=1.0, type_of_triplets="semihard", distance=LpDistance())
    ),
    "pml-farthest": mined(
        BatchEasyHardMiner(pos_strategy="hard", neg_strategy="semihard", distance=LpDistance())
    ),
    # A model would compute the embeddings, which are given here.
    "st-hard": from_embeddings(BatchHardTripletLoss(model=None, margin=1.0)),
    "st-semihard": from_embeddings(BatchSemiHardTripletLoss(model=None, margin=1.0)),
}

if __name__ == "__main__":
    versions = {
        "pytorch-metric-learning": pytorch_metric_learning.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "torch": torch.__version__,
    }
    serve(CONTESTANTS, versions)
