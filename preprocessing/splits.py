"""Rules that assign each class to a split, for inputs that name no splits themselves."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from tripletmill.errors import UsageError


@runtime_checkable
class SplitRule(Protocol):
    """A rule that decides the split of every class."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Takes all class names, sorted, and returns {class name: split}."""


@dataclasses.dataclass(frozen=True)
class HashSplits:
    """Gives each split a share of the classes, through a stable hash of the class name.

    A class keeps its split when other classes are added or removed. The splits have their shares
    only on average. With few classes a split may be empty, which is an error. The order of the
    shares does not matter.

    Attributes:
      shares: {split: share of the classes}. Each share is above 0, and they add up to 1.
    """

    shares: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1}
    )

    def __post_init__(self) -> None:
        shares = self.shares.values() if isinstance(self.shares, Mapping) else [0]
        are_positive = all(isinstance(share, int | float) and share > 0 for share in shares)
        if not are_positive or abs(sum(shares) - 1) > 1e-6:
            raise UsageError(
                "HashSplits.shares must be {split: share}, with shares above 0 that add up to 1,"
                f" not {self.shares}"
            )

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        splits = {name: self._split_of(name) for name in names}
        for split in self.shares:
            if split not in splits.values():
                raise UsageError(
                    f"split {split} (share {self.shares[split]}) gets none of the {len(names)}"
                    " classes; change HashSplits.shares, or assign splits by sorted order:"
                    " --gin_param='preprocess.splits = @SortedSplits()'"
                )
        return splits

    def _split_of(self, name: str) -> str:
        point = _stable_hash(name) / 2**64
        cumulative_share = 0.0
        for split, share in sorted(self.shares.items()):
            cumulative_share += share
            if point < cumulative_share:
                return split
        return split


@dataclasses.dataclass(frozen=True)
class SortedSplits:
    """Assigns splits by sorted order: class i gets the split cycle[i % len(cycle)].

    Attributes:
      cycle: names of splits. For example, ("train", "test") puts every second class into test.
    """

    cycle: Sequence[str] = ("train", "test")

    def __post_init__(self) -> None:
        are_names = isinstance(self.cycle, list | tuple) and all(
            isinstance(split, str) for split in self.cycle
        )
        if not self.cycle or not are_names:
            raise UsageError(f"SortedSplits.cycle must be a list of splits, not {self.cycle!r}")

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.cycle[i % len(self.cycle)] for i, name in enumerate(names)}


@dataclasses.dataclass(frozen=True)
class QueryGallery:
    """Divides the images of each class of one split into `query` and `gallery`.

    A stable hash of the images' names decides which images become queries. Each class keeps at
    least one image in the gallery. An image with an exact copy in its class is never a query. Apart
    from that, a class with two or more images has at least one query.

    Attributes:
      classes: the rule that assigns classes to splits.
      divided: the split whose classes are divided. No image stays in this split.
      query_share: the share of a class's images that become queries, between 0 and 1.
    """

    classes: SplitRule = dataclasses.field(default_factory=HashSplits)
    divided: str = "test"
    query_share: float = 0.2

    def __post_init__(self) -> None:
        share = self.query_share
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise UsageError(f"QueryGallery.query_share must be between 0 and 1, not {share!r}")
        if not isinstance(self.classes, SplitRule) or isinstance(self.classes, type):
            raise UsageError(
                "QueryGallery.classes must be @HashSplits() or @SortedSplits(), not"
                f" {self.classes!r}"
            )

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        splits = self.classes.assign(names)
        if self.divided not in splits.values():
            raise UsageError(
                f"QueryGallery.divided: no class is in {self.divided!r}; the classes are in"
                f" {', '.join(sorted({*splits.values()}))}"
            )
        return splits

    def num_queries(self, count: int, copies: int) -> int:
        """How many images of a class become queries.

        Args:
          count: how many images the class has.
          copies: how many of these images have an exact copy in the class.
        """
        wanted = max(1, round(self.query_share * count))
        return max(0, min(wanted, count - 1, count - copies))

    @staticmethod
    def order(source_ids: Sequence[str], copies: frozenset[str]) -> list[str]:
        """Sorts the images of a class so that the first ones become the queries.

        Args:
          source_ids: the names of all images of the class.
          copies: the names of the images that have an exact copy in the class. They come last.
        """
        return sorted(source_ids, key=lambda name: (name in copies, _stable_hash(name), name))


def _stable_hash(name: str) -> int:
    """A 64-bit hash. It must never change, because it decides the splits of users' data."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
