"""Exact duplicates: images whose files are the same byte by byte.

They are found in three steps. The first step keeps files that have the size of another file. The
second step keeps files whose middle has the same hash as another file's. The third step compares
the MD5 checksums of whole files. If the source knows MD5 checksums, as a bucket does, no file is
read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from preprocessing.sources.references import ImageRef, reason_unreadable
from tripletmill.formats.splits import HELD_OUT
from tripletmill.images import HEAD_BYTES, BadImage, require_image
from tripletmill.storage import storage

KEEP, DROP, ERROR = POLICIES = ("keep", "drop", "error")
WITHIN_CLASS, ACROSS_CLASSES, ACROSS_SPLITS = KINDS = (
    "within class",
    "across classes",
    "across splits",
)
COPY_KEYS = ("source_id", "class", "split", "kept")  # in duplicates.jsonl
MIDDLE_BYTES = 16 * 1024  # a file that is not longer is hashed as a whole


@dataclasses.dataclass(frozen=True)
class Copy:
    """One of several equal images. `kept` says whether it stays in the data set."""

    source_id: str
    class_name: str
    split: str
    kept: bool = True


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """A group of equal images.

    Attributes:
      kind: one of KINDS. If several kinds hold for the group, it is the last one in KINDS.
      copies: two or more images, sorted by source id.
    """

    kind: str
    copies: Sequence[Copy]


def decide(copies: Iterable[Copy], policy: str) -> DuplicateGroup:
    """Decides which of several equal images stay in the data set.

    With the policies "keep" and "error", all images stay. With "drop", at most one image stays. If
    the images lie in several splits, only those in the most strictly held-out split are considered;
    those in train, for example, go. If the considered images have one class, the first one stays.
    If they have several classes, none stays, because nobody can say which label is right.

    Args:
      copies: two or more images, in any order.
      policy: one of POLICIES.
    """
    ordered = sorted(copies, key=lambda copy: (copy.source_id, copy.class_name))
    splits = {copy.split for copy in ordered}
    classes = {copy.class_name for copy in ordered}
    kind = (
        ACROSS_SPLITS if len(splits) > 1 else ACROSS_CLASSES if len(classes) > 1 else WITHIN_CLASS
    )
    if policy != DROP:
        return DuplicateGroup(kind, ordered)
    held_out = max(splits, key=lambda split: (_rank(split), split))
    candidates = [copy for copy in ordered if copy.split == held_out]
    has_one_class = len({copy.class_name for copy in candidates}) == 1
    winners = candidates[:1] if has_one_class else []
    return DuplicateGroup(
        kind, [dataclasses.replace(copy, kept=copy in winners) for copy in ordered]
    )


def _rank(split: str) -> float:
    # Splits with other names, such as "validation", come right after train.
    return HELD_OUT.index(split) if split in HELD_OUT else 0.5


def reason(group: DuplicateGroup) -> str:
    """The reason why the copies that are not kept are left out."""
    return f"exact duplicate {group.kind}"


def read_groups(data: bytes) -> list[DuplicateGroup]:
    """Parses the content of duplicates.jsonl."""
    groups = []
    for row in map(json.loads, data.splitlines()):
        copies = [Copy(*(image[key] for key in COPY_KEYS)) for image in row["images"]]
        groups.append(DuplicateGroup(row["kind"], copies))
    return groups


def write_groups(groups: Iterable[DuplicateGroup]) -> bytes:
    """The content of duplicates.jsonl: one line per group, sorted by the first source id."""
    lines = []
    for group in sorted(groups, key=lambda group: group.copies[0].source_id):
        values = map(dataclasses.astuple, group.copies)
        images = [dict(zip(COPY_KEYS, copy, strict=True)) for copy in values]
        row = {"kind": group.kind, "images": images}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8", "surrogatepass")


def middle_hash(ref: ImageRef) -> int | None:
    """A 64-bit hash that is equal for equal images, or None if the file cannot be read."""
    if ref.md5:
        return int(ref.md5[:16], 16)
    start = max(0, (ref.size - MIDDLE_BYTES) // 2)
    try:
        middle = storage.read_range(ref.path, start, MIDDLE_BYTES)
    except OSError as error:
        reason_unreadable(ref.path, error)
        return None  # the image is rejected later, when it is read for its shard
    digest = hashlib.sha256(b"%d:" % ref.size + middle).digest()
    return int.from_bytes(digest[:8], "big")


def full_md5(ref: ImageRef) -> str | None:
    """The hexadecimal MD5 of an image file, or None if the file cannot be read or is no image.

    Empty files and saved HTML error pages are often equal. They are reported as unreadable, not as
    duplicates. If the source knows the MD5, such pages cannot be told apart from images, because
    their content is not read.
    """
    if ref.md5:
        return ref.md5 if ref.size else None
    try:
        with storage.open_read(ref.path) as file:
            require_image(file.read(HEAD_BYTES))
            file.seek(0)
            return hashlib.file_digest(file, _md5).hexdigest()  # type: ignore[arg-type]
    except BadImage:
        return None
    except OSError as error:
        reason_unreadable(ref.path, error)
        return None


def _md5() -> Any:
    # Buckets state MD5 checksums. Nobody gains anything by forging a duplicate.
    return hashlib.md5(usedforsecurity=False)
