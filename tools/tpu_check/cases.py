"""The cases that are compiled: the training step of one replica among several."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

LOSSES = ("semihard", "hard")
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "highest")


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step.

    Attributes:
      backbone: the name that `build_model` takes.
      loss: one of LOSSES.
      dtype: the dtype of the backbone, one of DTYPES. The loss is always computed in float32.
      matmul: the precision of float32 matmuls and convolutions, one of PRECISIONS.
      batch: images of this replica.
      replicas: the number of replicas.
      image_size: pixels.
      embedding_dim: D, the dimensions of an embedding.
    """

    backbone: str = "small_conv"
    loss: str = "semihard"
    dtype: str = "float32"
    matmul: str = "default"
    batch: int = 256
    replicas: int = 8
    image_size: int = 48
    embedding_dim: int = 64

    @property
    def global_batch(self) -> int:
        """Images of all replicas together."""
        return self.batch * self.replicas

    def to_json(self) -> str:
        """Returns the case as JSON, for the command line of the process that exports it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """Returns the case that `to_json` wrote."""
        return cls(**json.loads(text))


_RESNET = Case(backbone="resnet50", dtype="bfloat16", image_size=224, embedding_dim=128)
# What `make tpu-check` compiles. Cases that compile slowly come first.
DEFAULTS = (
    dataclasses.replace(_RESNET, replicas=256),
    dataclasses.replace(_RESNET, dtype="float32"),
    dataclasses.replace(_RESNET, batch=2048),
    *(
        Case(loss=loss, dtype=dtype, replicas=replicas)
        for dtype, loss, replicas in itertools.product(DTYPES, LOSSES, (8, 256))
    ),
    Case(matmul="highest"),
    Case(dtype="bfloat16", matmul="highest"),
    Case(batch=8192),
    Case(batch=16384),
)


def product(choices: Mapping[str, Sequence[Any]]) -> list[Case]:
    """Returns every combination of the given values.

    Args:
      choices: values for some attributes of a Case. Other attributes get defaults, which depend on
        the backbone.
    """
    cases = []
    for values in itertools.product(*choices.values()):
        given = dict(zip(choices, values, strict=True))
        default = Case() if given.get("backbone", "small_conv") == "small_conv" else _RESNET
        cases.append(dataclasses.replace(default, **given))
    return cases
