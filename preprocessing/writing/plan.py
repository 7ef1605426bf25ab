"""Class ids, splits, and which image goes to which shard: pure and deterministic."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.splits import QueryGallery, SplitRule
from tripletmill.errors import UsageError
from tripletmill.formats.splits import GALLERY, QUERY


@dataclasses.dataclass(frozen=True)
class ClassSummary:
    """What listing says of one class; sums of summaries are summaries.

    Attributes:
      counts: images by the split that the input asks for, None where it asks for none.
      fingerprint: sum of the hashes of all that an image's reference says but for its time, modulo
        2^256, so that it is the same in any order.
      versions: the same, of the times.
      newest: latest time of an image's file, nanoseconds.
      lost: images that cannot be read.
      example: why, for one of them.
    """

    counts: Mapping[str | None, int] = dataclasses.field(default_factory=dict)
    fingerprint: int = 0
    versions: int = 0
    newest: int = 0
    lost: int = 0
    example: str = ""

    @property
    def count(self) -> int:
        """All images."""
        return sum(self.counts.values())


def summarize(files: Iterable[ImageRef | Rejected]) -> dict[str, ClassSummary]:
    """Summaries by class name."""
    by_class: dict[str, list[ImageRef | Rejected]] = {}
    for file in files:
        by_class.setdefault(file.class_name, []).append(file)
    return {name: _summary(of_class) for name, of_class in by_class.items()}


def _summary(files: Iterable[ImageRef | Rejected]) -> ClassSummary:
    counts: dict[str | None, int] = {}
    fingerprint = versions = newest = 0
    reasons = []
    for file in files:
        if isinstance(file, Rejected):
            reasons += [file.reason] * file.lost
            continue
        row = repr([file.source_id, file.class_name, file.size, file.split, file.md5, file.extra])
        counts[file.split] = counts.get(file.split, 0) + 1
        fingerprint += _number(row)
        if file.modified:
            versions += _number(f"{file.modified}:{row}")
            newest = max(newest, file.modified)
    return ClassSummary(
        counts=counts,
        fingerprint=fingerprint % 2**256,
        versions=versions % 2**256,
        newest=newest,
        lost=len(reasons),
        example=max(reasons, default=""),
    )


def _number(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest, "big")


def add(one: ClassSummary, other: ClassSummary) -> ClassSummary:
    """The summary of both."""
    return ClassSummary(
        counts={
            split: one.counts.get(split, 0) + other.counts.get(split, 0)
            for split in {**one.counts, **other.counts}
        },
        fingerprint=(one.fingerprint + other.fingerprint) % 2**256,
        versions=(one.versions + other.versions) % 2**256,
        newest=max(one.newest, other.newest),
        lost=one.lost + other.lost,
        example=max(one.example, other.example),
    )


@dataclasses.dataclass(frozen=True)
class Listing:
    """All that was listed, and the split of every class.

    Attributes:
      split_of: by class name; None where the input names a split for every image.
      fingerprint: hexadecimal, of all images but for their times.
      versions: hexadecimal, of their times.
      newest: latest time of an image's file, nanoseconds.
      num_images: that can be read, as far as listing knows.
      num_lost: that cannot.
      example: why, for one of them.
    """

    split_of: Mapping[str, str | None]
    fingerprint: str
    versions: str
    newest: int
    num_images: int
    num_lost: int
    example: str

    def with_split(self, ref: ImageRef) -> ImageRef:
        """The image with its split, before classes are divided."""
        split = self.split_of[ref.class_name]
        return ref if split is None else dataclasses.replace(ref, split=split)


def make_listing(classes: Mapping[str, ClassSummary], rule: SplitRule) -> Listing:
    """Assigns splits to classes.

    Args:
      classes: what was listed, by class name; "" for files that are in no class.
      rule: for classes, used unless the input names a split for every image.

    Raises:
      UsageError: no image; a class in several splits other than query and gallery; a split named
        for some images only; a split's name that is no word of letters, digits and underscores.
    """
    names = sorted(name for name, summary in classes.items() if summary.count)
    num_lost = sum(summary.lost for summary in classes.values())
    example = max((summary.example for summary in classes.values()), default="")
    if not names:
        lost = f"; {num_lost} cannot be used: {example}" if num_lost else ""
        raise UsageError(f"no images in the input{lost}")
    given = {name: {*classes[name].counts} for name in names}
    split_of: Mapping[str, str | None]
    if all(splits == {None} for splits in given.values()):
        split_of = rule.assign(names)
        used = {*split_of.values()}
    else:
        _check_given(given)
        split_of = dict.fromkeys(names)
        used = {str(split) for splits in given.values() for split in splits}
    for split in sorted(used):
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UsageError(f"split {split!r}: letters, digits and underscores only")
    ordered = [(name, classes[name]) for name in names]
    return Listing(
        split_of=split_of,
        fingerprint=_digest([[name, s.count, s.fingerprint] for name, s in ordered]),
        versions=_digest([[name, s.versions] for name, s in ordered]),
        newest=max(summary.newest for _, summary in ordered),
        num_images=sum(summary.count for _, summary in ordered),
        num_lost=num_lost,
        example=example,
    )


def _digest(rows: Iterable[Sequence[object]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _check_given(given: Mapping[str, set[str | None]]) -> None:
    for name, splits in sorted(given.items()):
        if None in splits:
            raise UsageError(f"class {name!r}: the split is empty for some of its images")
        if len(splits) > 1 and not splits <= {QUERY, GALLERY}:
            raise UsageError(
                f"class {name!r}: images in several splits ({', '.join(sorted(map(str, splits)))});"
                f" splits are disjoint in classes, but for {QUERY} and {GALLERY}"
            )


@dataclasses.dataclass(frozen=True)
class KeptImages:
    """Images of one class and split that stay in the data set; sums of them are such.

    Attributes:
      count: of them.
      copies: those that have an exact copy in their class.
    """

    count: int = 0
    copies: frozenset[str] = frozenset()

    def __add__(self, other: "KeptImages") -> "KeptImages":
        return KeptImages(self.count + other.count, self.copies | other.copies)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """The images of one class in one split: how many, and the place of the first in the split."""

    count: int
    first_row: int


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedClass:
    """One class.

    Attributes:
      label: over all splits.
      name: of the class.
      pieces: by split, sorted; several only for query and gallery.
      copies: images that have an exact copy in the class, where it is to be divided.
    """

    label: int
    name: str
    pieces: Mapping[str, Piece]
    copies: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """Images over all splits."""
        return sum(piece.count for piece in self.pieces.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which image goes where.

    Attributes:
      classes: by class name.
      too_small: images by class name, for classes that are left out since they have too few.
      num_shards: by split.
      num_images: by split.
      division: how classes are divided into query and gallery, if they are.
    """

    classes: Mapping[str, PlannedClass]
    too_small: Mapping[str, int]
    num_shards: Mapping[str, int]
    num_images: Mapping[str, int]
    division: QueryGallery | None = None

    def whole_shard(self, name: str, split: str) -> int | None:
        """The shard of all images of a class that are in this split; None if it needs `place`."""
        planned = self.classes[name]
        if self._is_divided(split) or self._groups(planned.pieces[split], split) > 1:
            return None
        return self._shard(planned.pieces[split], split, 0)

    def place(
        self, name: str, split: str, refs: Iterable[ImageRef]
    ) -> list[tuple[tuple[str, int], list[ImageRef]]]:
        """Split and shard of the images of a class, which come in any order, all of a split.

        A class no larger than a shard's share lies in one shard; a larger one is cut into
        contiguous groups of nearly equal size, sorted by source id.
        """
        planned = self.classes[name]
        by_name = {ref.source_id: ref for ref in refs}
        split_of = dict.fromkeys(by_name, split)
        if self._is_divided(split):
            assert self.division is not None
            ordered = self.division.order(list(by_name), planned.copies)
            queries = planned.pieces[QUERY].count if QUERY in planned.pieces else 0
            split_of = {n: QUERY if i < queries else GALLERY for i, n in enumerate(ordered)}
        placed: dict[tuple[str, int], list[ImageRef]] = {}
        position = dict.fromkeys(planned.pieces, 0)
        for source_id in sorted(by_name):
            target = split_of[source_id]
            shard = self._shard(planned.pieces[target], target, position[target])
            placed.setdefault((target, shard), []).append(by_name[source_id])
            position[target] += 1
        return list(placed.items())

    def _is_divided(self, split: str) -> bool:
        return self.division is not None and split == self.division.divided

    def _groups(self, piece: Piece, split: str) -> int:
        return -(-piece.count // (self.num_images[split] // self.num_shards[split]))

    def _shard(self, piece: Piece, split: str, position: int) -> int:
        groups = self._groups(piece, split)
        group = position * groups // piece.count
        group_start = -(-group * piece.count // groups)
        return (piece.first_row + group_start) * self.num_shards[split] // self.num_images[split]


def make_plan(
    kept: Mapping[tuple[str, str], KeptImages],
    *,
    splits: SplitRule,
    images_per_shard: int,
    min_images: int = 1,
) -> Plan:
    """Plans a data set.

    Args:
      kept: images to be written, by class name and split.
      splits: the rule for classes; QueryGallery divides them here.
      images_per_shard: a shard's share of images; the end of a class can make it a little more.
      min_images: classes with fewer are left out.

    Raises:
      UsageError: no class is left.
    """
    division = splits if isinstance(splits, QueryGallery) else None
    counts: dict[str, int] = {}
    for (name, _), images in kept.items():
        counts[name] = counts.get(name, 0) + images.count
    too_small = {name: count for name, count in sorted(counts.items()) if count < min_images}
    names = sorted(counts.keys() - too_small.keys())
    if not names:
        raise UsageError(
            f"none of the {len(counts)} classes has min_images = {min_images} images"
            if counts
            else "no images are left without duplicates; see --duplicates"
        )
    by_class: dict[str, dict[str, int]] = {name: {} for name in names}
    copies: dict[str, frozenset[str]] = {}
    for (name, split), images in sorted(kept.items()):
        if name not in by_class:
            continue
        if division is not None and split == division.divided:
            queries = division.num_queries(images.count, len(images.copies))
            divided = {GALLERY: images.count - queries, QUERY: queries}
            by_class[name] |= {s: count for s, count in divided.items() if count}
            copies[name] = images.copies
        else:
            by_class[name][split] = images.count
    sizes: dict[str, int] = {}
    classes = {}
    for label, name in enumerate(names):
        pieces = {}
        for split, count in by_class[name].items():
            pieces[split] = Piece(count, sizes.get(split, 0))
            sizes[split] = sizes.get(split, 0) + count
        classes[name] = PlannedClass(label, name, pieces, copies.get(name, frozenset()))
    return Plan(
        classes=classes,
        too_small=too_small,
        num_shards={split: -(-sizes[split] // images_per_shard) for split in sorted(sizes)},
        num_images=sizes,
        division=division,
    )
