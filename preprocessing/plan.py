"""Class ids, class-disjoint splits, and which class goes to which shard: pure and deterministic."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from preprocessing.errors import UsageError


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
                    " classes; choose other HashSplits.shares, or SortedSplits"
                )
        return splits

    def _split_of(self, name: str) -> str:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
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
class ClassSummary:
    """What listing says of one class; sums of summaries are summaries.

    Attributes:
      count: images.
      splits: splits that the input asks for; contains None where it asks for none.
      fingerprint: sum of the images' hashes modulo 2^256, the same in any order.
      newest: latest modification time of an image, nanoseconds.
    """

    count: int
    splits: frozenset[str | None]
    fingerprint: int
    newest: int = 0

    def __add__(self, other: "ClassSummary") -> "ClassSummary":
        return ClassSummary(
            self.count + other.count,
            self.splits | other.splits,
            (self.fingerprint + other.fingerprint) % 2**256,
            max(self.newest, other.newest),
        )


@dataclasses.dataclass(frozen=True)
class PlannedClass:
    """One class: its label over all splits, its split, and the images listed for it."""

    label: int
    name: str
    split: str
    count: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which image goes where.

    Attributes:
      classes: by class name.
      num_shards: by split.
      num_images: by split.
      first_row: by class name, the place of its first image among those of its split.
      fingerprint: hexadecimal, of the images listed (names, classes, sizes) and of their splits.
      newest: latest modification time of an image, nanoseconds.
    """

    classes: Mapping[str, PlannedClass]
    num_shards: Mapping[str, int]
    num_images: Mapping[str, int]
    first_row: Mapping[str, int]
    fingerprint: str
    newest: int

    def shard_of(self, name: str, position: int) -> int:
        """The shard of a class's image at this position of its sorted images.

        A class no larger than a shard's share lies in one shard; a larger one is cut into
        contiguous groups of nearly equal size.
        """
        planned = self.classes[name]
        shards, images = self.num_shards[planned.split], self.num_images[planned.split]
        groups = -(-planned.count // (images // shards))
        group = position * groups // planned.count
        group_start = -(-group * planned.count // groups)
        return (self.first_row[name] + group_start) * shards // images


def make_plan(
    classes: Mapping[str, ClassSummary], *, splits: SplitRule, images_per_shard: int
) -> Plan:
    """Plans a data set.

    Args:
      classes: what was listed, by class name.
      splits: the rule for classes, used unless the input names a split for every image.
      images_per_shard: a shard's share of images; the end of a class can make it a little more.

    Raises:
      UsageError: no image; a class in several splits; a split named for some images only; a
        split's name that is no word of letters, digits and underscores.
    """
    names = sorted(classes)
    if not names:
        raise UsageError("no images in the input")
    split_of = _given_splits(classes) or splits.assign(names)
    for split in sorted(set(split_of.values())):
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UsageError(f"split {split!r}: letters, digits and underscores only")
    planned = {
        name: PlannedClass(label, name, split_of[name], classes[name].count)
        for label, name in enumerate(names)
    }
    sizes: dict[str, int] = {}
    first_row = {}
    for name in names:
        split = split_of[name]
        first_row[name] = sizes.get(split, 0)
        sizes[split] = first_row[name] + classes[name].count
    digest = hashlib.sha256()
    for name in names:
        summary = classes[name]
        row = [name, split_of[name], summary.count, summary.fingerprint]
        digest.update(json.dumps(row).encode())
    return Plan(
        classes=planned,
        num_shards={split: -(-sizes[split] // images_per_shard) for split in sorted(sizes)},
        num_images=sizes,
        first_row=first_row,
        fingerprint=digest.hexdigest(),
        newest=max(summary.newest for summary in classes.values()),
    )


def _given_splits(classes: Mapping[str, ClassSummary]) -> dict[str, str] | None:
    given = {name: summary.splits for name, summary in classes.items()}
    if all(splits == {None} for splits in given.values()):
        return None
    for name, splits in sorted(given.items()):
        if None in splits:
            raise UsageError(f"class {name}: the split is empty for some of its images")
        if len(splits) > 1:
            raise UsageError(
                f"class {name}: images in several splits ({', '.join(sorted(map(str, splits)))});"
                " splits are disjoint in classes"
            )
    return {name: str(next(iter(splits))) for name, splits in given.items()}
