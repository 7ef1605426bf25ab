"""Which class goes to which split, where the input does not say."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from tripletmill.errors import UsageError


@runtime_checkable
class SplitRule(Protocol):
    """Decides the split of every class."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Class names, sorted -> name of the split of each."""


@dataclasses.dataclass(frozen=True)
class HashSplits:
    """By share of the classes, through a stable hash of the class name.

    A class keeps its split when others are added or removed. The shares are met on average, so a
    handful of classes can leave a split empty, which is an error. The order of the shares does not
    matter.

    Attributes:
      shares: split -> share of the classes, 0 to 1, adding up to 1.
    """

    shares: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1}
    )

    def __post_init__(self) -> None:
        shares = self.shares.values() if isinstance(self.shares, Mapping) else [0]
        numbers = all(isinstance(share, int | float) and share > 0 for share in shares)
        if not numbers or abs(sum(shares) - 1) > 1e-6:
            raise UsageError(
                "HashSplits.shares: {split: share} with shares above 0 that add up to 1, not"
                f" {self.shares}"
            )

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        splits = {name: self._split_of(name) for name in names}
        for split in self.shares:
            if split not in splits.values():
                raise UsageError(
                    f"split {split} (share {self.shares[split]}) gets none of the {len(names)}"
                    " classes; choose other HashSplits.shares, or by order:"
                    " --gin_param='preprocess.splits = @SortedSplits()'"
                )
        return splits

    def _split_of(self, name: str) -> str:
        point = _stable_hash(name) / 2**64
        reached = 0.0
        for split, share in sorted(self.shares.items()):
            reached += share
            if point < reached:
                return split
        return split


@dataclasses.dataclass(frozen=True)
class SortedSplits:
    """By position of the class in sorted order: class i gets cycle[i % len(cycle)].

    Attributes:
      cycle: names of splits; ("train", "test") puts every second class into test.
    """

    cycle: Sequence[str] = ("train", "test")

    def __post_init__(self) -> None:
        names = isinstance(self.cycle, list | tuple) and all(isinstance(s, str) for s in self.cycle)
        if not self.cycle or not names:
            raise UsageError(f"SortedSplits.cycle: a list of splits, not {self.cycle!r}")

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.cycle[i % len(self.cycle)] for i, name in enumerate(names)}


@dataclasses.dataclass(frozen=True)
class QueryGallery:
    """Divides the images of each class of one split into `query` and `gallery`.

    Which images become queries is decided by a stable hash of their names. A class has at least one
    query if it has two images, and always one image in the gallery. An image with an exact copy in
    its class is never a query.

    Attributes:
      classes: the rule for classes.
      divided: the split whose classes are divided, so that it is itself empty.
      query_share: of the images of a class, 0 to 1.
    """

    classes: SplitRule = dataclasses.field(default_factory=HashSplits)
    divided: str = "test"
    query_share: float = 0.2

    def __post_init__(self) -> None:
        share = self.query_share
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise UsageError(f"QueryGallery.query_share: between 0 and 1, not {share!r}")
        if not isinstance(self.classes, SplitRule) or isinstance(self.classes, type):
            raise UsageError(
                f"QueryGallery.classes: @HashSplits() or @SortedSplits(), not {self.classes!r}"
            )

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        splits = self.classes.assign(names)
        if self.divided not in splits.values():
            raise UsageError(
                f"QueryGallery.divided: no class is in {self.divided!r}, only in"
                f" {', '.join(sorted({*splits.values()}))}"
            )
        return splits

    def num_queries(self, count: int, copies: int) -> int:
        """How many of a class's `count` images become queries, `copies` of which have a copy."""
        wanted = max(1, round(self.query_share * count))
        return max(0, min(wanted, count - 1, count - copies))

    @staticmethod
    def order(source_ids: Sequence[str], copies: frozenset[str]) -> list[str]:
        """The images of a class, those first that become queries first."""
        return sorted(source_ids, key=lambda name: (name in copies, _stable_hash(name), name))


def _stable_hash(name: str) -> int:
    """64 bits, the same everywhere and for ever."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
