"""Exact nearest neighbours and what retrieval by them is worth (docs/evaluation.md)."""

from trainer.retrieval.confidence import confidence_intervals
from trainer.retrieval.matches import Gallery, Protocol
from trainer.retrieval.metrics import RetrievalMetrics, retrieval_metrics
from trainer.retrieval.neighbours import Neighbours, nearest_neighbours

__all__ = [
    "Gallery",
    "Neighbours",
    "Protocol",
    "RetrievalMetrics",
    "confidence_intervals",
    "nearest_neighbours",
    "retrieval_metrics",
]
