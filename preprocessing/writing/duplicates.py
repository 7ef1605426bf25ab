"""Exact duplicates: images whose files are the same byte by byte.

They are found in three steps, each on what the one before leaves: files of equal size; of those,
files whose middle is equal; of those, files that are equal as a whole. Where the source knows MD5
checksums (a bucket's own), nothing is read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from preprocessing.sources.references import ImageRef
from tripletmill.errors import UsageError
from tripletmill.formats.splits import HELD_OUT
from tripletmill.images import HEAD_BYTES, BadImage, require_image
from tripletmill.storage import storage

KEEP, DROP, ERROR = POLICIES = ("keep", "drop", "error")
WITHIN_CLASS, ACROSS_CLASSES, ACROSS_SPLITS = KINDS = (
    "within class",
    "across classes",
    "across splits",
)
MIDDLE_BYTES = 16 * 1024  # and so all of a small file


@dataclasses.dataclass(frozen=True)
class Copy:
    """One of several equal images; `kept` says whether it stays in the data set."""

    source_id: str
    class_name: str
    split: str
    kept: bool = True


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """Equal images, sorted by name.

    Attributes:
      kind: the gravest of KINDS that holds for them.
      copies: two or more.
    """

    kind: str
    copies: Sequence[Copy]

    def to_json(self) -> dict[str, Any]:
        """A row of duplicates.jsonl."""
        return {
            "kind": self.kind,
            "images": [
                {"source_id": c.source_id, "class": c.class_name, "split": c.split, "kept": c.kept}
                for c in self.copies
            ],
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "DuplicateGroup":
        """What to_json gave."""
        copies = [Copy(i["source_id"], i["class"], i["split"], i["kept"]) for i in row["images"]]
        return DuplicateGroup(row["kind"], copies)


def decide(copies: Iterable[Copy], policy: str) -> DuplicateGroup:
    """Which of equal images stay.

    With "drop": of copies across splits, those in the split that is held out most (train's go);
    of what is left within one class, the first; of what is left in several classes, none, since
    nobody can say which label is right. With "keep" and "error": all.

    Args:
      copies: two or more, in any order.
      policy: of POLICIES.
    """
    ordered = sorted(copies, key=lambda copy: (copy.source_id, copy.class_name))
    splits = {copy.split for copy in ordered}
    classes = {copy.class_name for copy in ordered}
    kind = (
        ACROSS_SPLITS if len(splits) > 1 else ACROSS_CLASSES if len(classes) > 1 else WITHIN_CLASS
    )
    if policy != DROP:
        return DuplicateGroup(kind, ordered)
    last = max(splits, key=lambda split: (_rank(split), split))
    left = [copy for copy in ordered if copy.split == last]
    kept = left[:1] if len({copy.class_name for copy in left}) == 1 else []
    return DuplicateGroup(kind, [dataclasses.replace(c, kept=c in kept) for c in ordered])


def _rank(split: str) -> float:
    # Others, such as "validation", more than train.
    return HELD_OUT.index(split) if split in HELD_OUT else 0.5


def reason(group: DuplicateGroup) -> str:
    """Why the copies of a group that are not kept are left out."""
    return f"exact duplicate {group.kind}"


def read_groups(data: bytes) -> list[DuplicateGroup]:
    """Content of a duplicates.jsonl."""
    return [DuplicateGroup.from_json(json.loads(line)) for line in data.splitlines()]


def write_groups(groups: Iterable[DuplicateGroup]) -> bytes:
    """Content of a duplicates.jsonl: a line a group, sorted."""
    ordered = sorted(groups, key=lambda group: group.copies[0].source_id)
    lines = [json.dumps(group.to_json(), ensure_ascii=False) + "\n" for group in ordered]
    return "".join(lines).encode("utf-8", "surrogatepass")


def middle_hash(ref: ImageRef) -> int | None:
    """64 bits that equal images have in common; None where the file cannot be read now."""
    if ref.md5:
        return int(ref.md5[:16], 16)
    start = max(0, (ref.size - MIDDLE_BYTES) // 2)
    try:
        middle = storage.read_range(ref.path, start, MIDDLE_BYTES)
    except OSError as error:
        if storage.problem_of_file(error):
            return None  # it is rejected when it is read for good
        raise _trouble(ref, error) from error
    digest = hashlib.sha256(b"%d:" % ref.size + middle).digest()
    return int.from_bytes(digest[:8], "big")


def full_md5(ref: ImageRef) -> str | None:
    """MD5 of an image, hexadecimal; None where the file cannot be read now, or is no image.

    Empty files and pages with an error are often equal: they are rejected for what they are, but
    for pages where `md5` is known, since nothing is read then.
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
        if storage.problem_of_file(error):
            return None
        raise _trouble(ref, error) from error


def _md5() -> Any:
    # What buckets state; nobody gains by forging a duplicate.
    return hashlib.md5(usedforsecurity=False)


def _trouble(ref: ImageRef, error: OSError) -> UsageError:
    return UsageError(f"{ref.path}: {error.strerror}; the same command goes on from here")
