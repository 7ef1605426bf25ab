"""Triplet losses for TensorFlow and Keras, mined over the batch of all replicas.

  from tripletmill import TripletSemiHardLoss

  model.compile(optimizer="adam", loss=TripletSemiHardLoss(margin=0.2))  # labels: integers

Importing this package alone does not load TensorFlow. The first use of a name below does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tripletmill.losses.keras_losses import TripletHardLoss, TripletSemiHardLoss
    from tripletmill.losses.triplet import (
        TripletResult,
        batch_triplets,
        hard_triplets,
        semihard_triplets,
        triplet_hard_loss,
        triplet_loss,
        triplet_semihard_loss,
    )

__version__ = "0.1.0"

__all__ = [
    "TripletHardLoss",
    "TripletResult",
    "TripletSemiHardLoss",
    "batch_triplets",
    "hard_triplets",
    "semihard_triplets",
    "triplet_hard_loss",
    "triplet_loss",
    "triplet_semihard_loss",
]

_KERAS_LOSSES = {"TripletHardLoss", "TripletSemiHardLoss"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "keras_losses" if name in _KERAS_LOSSES else "triplet"
    return getattr(importlib.import_module(f"{__name__}.losses.{module}"), name)
