"""What is compiled: a training step of one replica among several."""

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
    """One step.

    Attributes:
      backbone: as `build_model` takes it.
      loss: one of LOSSES.
      dtype: of the backbone; the loss is float32.
      matmul: precision of float32 matmuls and convolutions, one of PRECISIONS.
      batch: images of this replica.
      replicas: how many there are.
      image_size: pixels.
      embedding_dim: D.
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
        """Images of all replicas."""
        return self.batch * self.replicas

    def to_json(self) -> str:
        """For the command line of the process that exports it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """The inverse of to_json."""
        return cls(**json.loads(text))


_RESNET = Case(backbone="resnet50", dtype="bfloat16", image_size=224, embedding_dim=128)
# What `make tpu-check` compiles; the slow ones begin first.
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
    """Every combination of some attributes' values; the others by the backbone."""
    cases = []
    for values in itertools.product(*choices.values()):
        given = dict(zip(choices, values, strict=True))
        start = Case() if given.get("backbone", "small_conv") == "small_conv" else _RESNET
        cases.append(dataclasses.replace(start, **given))
    return cases
