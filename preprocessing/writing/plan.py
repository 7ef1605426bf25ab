"""Decides class ids, splits and shards. Everything here is pure and deterministic."""

import collections
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
    """What the listing says about the images of one class, or about some of them.

    Attributes:
      counts: numbers of images by the split that the input names. The key is None for images
        without a split.
      fingerprint: a hash of the images' references without their times of change. It is the sum of
        one hash per image, modulo 2^256, so that the order of the images does not matter.
      versions: a hash of the references and times of all images that have a time. It is a sum of
        one hash per image, too.
      newest: the latest time of change of an image file, in nanoseconds; 0 if no image has a time.
      lost: how many images cannot be read.
      example: the reason for one of the lost images, "" if there is none.
    """

    counts: Mapping[str | None, int] = dataclasses.field(default_factory=dict)
    fingerprint: int = 0
    versions: int = 0
    newest: int = 0
    lost: int = 0
    example: str = ""

    @property
    def count(self) -> int:
        """How many images there are in all splits."""
        return sum(self.counts.values())


def summarize(files: Iterable[ImageRef | Rejected]) -> dict[str, ClassSummary]:
    """Sums up listed files by class name."""
    by_class: dict[str, list[ImageRef | Rejected]] = {}
    for file in files:
        by_class.setdefault(file.class_name, []).append(file)
    return {name: _summary(class_files) for name, class_files in by_class.items()}


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


def add_up(summaries: Iterable[ClassSummary]) -> ClassSummary:
    """The summary of the images of all summaries; an empty summary if there are none."""
    parts = [*summaries]
    counts: collections.Counter[str | None] = collections.Counter()
    for part in parts:
        counts.update(part.counts)
    return ClassSummary(
        counts=counts,
        fingerprint=sum(part.fingerprint for part in parts) % 2**256,
        versions=sum(part.versions for part in parts) % 2**256,
        newest=max((part.newest for part in parts), default=0),
        lost=sum(part.lost for part in parts),
        example=max((part.example for part in parts), default=""),
    )


def require_images(total: ClassSummary) -> None:
    """Raises UsageError if the summary of the whole input has no image that can be read."""
    if not total.count:
        lost = f"; {total.lost} cannot be used: {total.example}" if total.lost else ""
        raise UsageError(f"no images in the input{lost}")


@dataclasses.dataclass(frozen=True)
class Listing:
    """A summary of the whole input, with the split of every class.

    Attributes:
      split_of: the split of each class, by class name; None if the input names the images' splits.
      fingerprint: a hexadecimal hash of all images without their times of change.
      versions: a hexadecimal hash of all images with their times of change.
      total: the summary of all images.
    """

    split_of: Mapping[str, str | None]
    fingerprint: str
    versions: str
    total: ClassSummary

    def with_split(self, ref: ImageRef) -> ImageRef:
        """The image with its split. Classes are not yet divided into query and gallery."""
        split = self.split_of[ref.class_name]
        return ref if split is None else dataclasses.replace(ref, split=split)


def make_listing(classes: Mapping[str, ClassSummary], rule: SplitRule) -> Listing:
    """Assigns splits to classes.

    Args:
      classes: the summary of each class, by class name. Files in no class have the class name "".
      rule: the rule that assigns classes to splits. It is used if the input names no splits.

    Raises:
      UsageError: there is no image; a class has images in several splits other than query and
        gallery; some images of a class have a split and others have none; or the name of a split
        has other characters than letters, digits and underscores.
    """
    total = add_up(classes.values())
    require_images(total)
    ordered = [(name, classes[name]) for name in sorted(classes) if classes[name].count]
    return Listing(
        split_of=_assign_splits({name: {*summary.counts} for name, summary in ordered}, rule),
        fingerprint=_digest(
            [name, summary.count, summary.fingerprint] for name, summary in ordered
        ),
        versions=_digest([name, summary.versions] for name, summary in ordered),
        total=total,
    )


def _assign_splits(
    given: Mapping[str, set[str | None]], rule: SplitRule
) -> Mapping[str, str | None]:
    """The split of each class; None for each class if the input names the images' splits.

    Args:
      given: the splits that the input names, by class name, sorted.
      rule: the rule that assigns classes to splits if the input names none.
    """
    split_of: Mapping[str, str | None]
    if all(splits == {None} for splits in given.values()):
        split_of = rule.assign([*given])
        used = {*split_of.values()}
    else:
        _check_given(given)
        split_of = dict.fromkeys(given)
        used = {str(split) for splits in given.values() for split in splits}
    for split in sorted(used):
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UsageError(
                f"split {split!r}: a name may have letters, digits and underscores only"
            )
    return split_of


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
                f" only {QUERY} and {GALLERY} may share a class"
            )


@dataclasses.dataclass(frozen=True)
class KeptImages:
    """The images of one class and split that stay in the data set, or some of them.

    Attributes:
      count: how many images there are.
      copies: the source ids of the images that have an exact copy in their class.
    """

    count: int = 0
    copies: frozenset[str] = frozenset()

    def __add__(self, other: "KeptImages") -> "KeptImages":
        return KeptImages(self.count + other.count, self.copies | other.copies)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """The images of one class in one split.

    Attributes:
      count: how many images there are.
      first_row: the position of the first image among all images of the split.
    """

    count: int
    first_row: int


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedClass:
    """One class with its label.

    Attributes:
      label: the class id, which is unique over all splits.
      name: the class name.
      pieces: the images by split, sorted. Only a class in query and gallery has several pieces.
      copies: the source ids of images that have an exact copy in the class. It is empty for classes
        that are not divided into query and gallery.
    """

    label: int
    name: str
    pieces: Mapping[str, Piece]
    copies: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says to which split and shard each image goes.

    Attributes:
      classes: the classes by class name.
      too_small: numbers of images by class name, for classes with too few images. These classes are
        left out.
      num_shards: the number of shards by split.
      num_images: the number of images by split.
      division: the rule that divides classes into query and gallery, or None.
    """

    classes: Mapping[str, PlannedClass]
    too_small: Mapping[str, int]
    num_shards: Mapping[str, int]
    num_images: Mapping[str, int]
    division: QueryGallery | None = None

    def whole_shard(self, name: str, split: str) -> int | None:
        """The shard that holds all images of a class in a split.

        It is None if the images may go to several shards or splits; then `place` says where.
        """
        planned = self.classes[name]
        if self._is_divided(split) or self._groups(planned.pieces[split], split) > 1:
            return None
        return self._shard(planned.pieces[split], split, 0)

    def place(
        self, name: str, split: str, refs: Iterable[ImageRef]
    ) -> list[tuple[tuple[str, int], list[ImageRef]]]:
        """Groups the images of a class by the split and the shard that they go to.

        A class that is not larger than a shard's share of images lies in one shard. A larger class
        is cut into contiguous groups of nearly equal size.

        Args:
          name: the class name.
          split: the split of the images, before the class is divided into query and gallery.
          refs: all images of the class in this split, in any order.

        Returns:
          Pairs of (split, shard) and the images that go there, sorted by source id.
        """
        planned = self.classes[name]
        by_name = {ref.source_id: ref for ref in refs}
        names_by_split = {split: [*by_name]}
        if self.division is not None and self._is_divided(split):
            ordered = self.division.order([*by_name], planned.copies)
            queries = planned.pieces[QUERY].count if QUERY in planned.pieces else 0
            names_by_split = {QUERY: ordered[:queries], GALLERY: ordered[queries:]}
        placed: dict[tuple[str, int], list[ImageRef]] = {}
        for target, names in names_by_split.items():
            for position, source_id in enumerate(sorted(names)):
                shard = self._shard(planned.pieces[target], target, position)
                placed.setdefault((target, shard), []).append(by_name[source_id])
        return list(placed.items())

    def _is_divided(self, split: str) -> bool:
        return self.division is not None and split == self.division.divided

    def _groups(self, piece: Piece, split: str) -> int:
        """The number of contiguous groups that a piece is cut into."""
        return -(-piece.count // (self.num_images[split] // self.num_shards[split]))

    def _shard(self, piece: Piece, split: str, position: int) -> int:
        """The shard of the image at a position in a piece."""
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
      kept: the images that stay in the data set, by class name and split.
      splits: the rule for splits. QueryGallery divides classes here.
      images_per_shard: a shard's share of images. A shard may hold more, because a class that is
        not larger than the share is not cut.
      min_images: classes with fewer images are left out.

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
            by_class[name] |= _divide(images, division)
            copies[name] = images.copies
        else:
            by_class[name][split] = images.count
    num_images: dict[str, int] = {}
    classes = {}
    for label, (name, split_counts) in enumerate(by_class.items()):
        pieces = {}
        for split, count in split_counts.items():
            pieces[split] = Piece(count, first_row=num_images.get(split, 0))
            num_images[split] = pieces[split].first_row + count
        classes[name] = PlannedClass(label, name, pieces, copies.get(name, frozenset()))
    return Plan(
        classes=classes,
        too_small=too_small,
        num_shards={
            split: -(-num_images[split] // images_per_shard) for split in sorted(num_images)
        },
        num_images=num_images,
        division=division,
    )


def _divide(images: KeptImages, division: QueryGallery) -> dict[str, int]:
    """The numbers of images of a class in query and gallery, without splits that stay empty."""
    queries = division.num_queries(images.count, len(images.copies))
    counts = {GALLERY: images.count - queries, QUERY: queries}
    return {split: count for split, count in counts.items() if count}
