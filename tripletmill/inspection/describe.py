"""A summary of a data set for people, as lines of at most 80 characters."""

import collections
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tripletmill.cli.progress import byte_size
from tripletmill.errors import UsageError
from tripletmill.formats import index

WIDTH = 80
CLASSES_SHOWN = 5
NAMES_SHOWN = 10
NAME_WIDTH = 30
_FIRST_SPLITS = ("train", "val", "test", "query", "gallery")


def describe(directory: str) -> Iterator[str]:
    """Summarizes splits, image sizes, images a class, images that were left out, and settings.

    It reads the small files and two columns of each index, and no shard.

    Args:
      directory: folder of the data set.

    Returns:
      Lines of text without line ends. They are at most 80 characters long, except the first one,
      which names the folder. All characters are printable.

    Raises:
      UsageError: there is no finished data set, or a file cannot be read.
      OSError: the list of images that were left out is missing.
    """
    info = index.load_info(directory)
    classes = index.read_classes(info).to_pylist()
    yield f"data set {escaped(info.name)} in {escaped(info.directory)}"
    yield ""
    yield from _splits(info, classes)
    yield ""
    yield from _sizes(info)
    yield ""
    yield from _images_a_class(classes)
    yield ""
    yield from _left_out(info)
    yield ""
    yield from _settings(info)


def escaped(text: str) -> str:
    """Escapes unprintable characters as in Python, because they could control the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _splits(info: index.DatasetInfo, classes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    first = [split for split in _FIRST_SPLITS if split in info.num_shards]
    rows = [["split", "classes", "images", "shards", "size", "a class: min", "median", "max"]]
    for split in [*first, *sorted({*info.num_shards} - {*first})]:
        counts = [row["count"] for row in classes if row["split"] == split and row["count"]]
        numbers = (info.num_classes[split], info.num_images[split], info.num_shards[split])
        size = byte_size(info.num_bytes[split])
        rows.append([split, *map(_number, numbers), size, *_spread(counts)])
    yield from _table("<>>>>>>>", rows)


def _sizes(info: index.DatasetInfo) -> Iterator[str]:
    sides = ["height", "width"]
    tables = [index.read_index(info, split, sides) for split in info.num_shards]
    rows = [(side, *_spread(np.hstack([[], *(t[side] for t in tables)]))) for side in sides]
    yield from _table("<>>>", [("pixels", "min", "median", "max"), *rows])


def _images_a_class(classes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    totals: collections.Counter[str] = collections.Counter()
    splits: dict[str, list[str]] = {}
    for row in classes:
        totals[row["name"]] += row["count"]
        splits.setdefault(row["name"], []).append(row["split"])
    yield from _histogram([*totals.values()])
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    parts = {"classes": ordered}
    if len(ordered) > 2 * CLASSES_SHOWN:
        parts = {
            "largest classes": ordered[:CLASSES_SHOWN],
            "smallest classes": sorted(totals, key=lambda n: (totals[n], n))[:CLASSES_SHOWN],
        }
    for title, names in parts.items():
        yield ""
        yield title
        cells = [(_number(totals[name]), ", ".join(splits[name])) for name in names]
        for line, name in zip(_table("><", cells), names, strict=True):
            yield _cut(f"  {line}  {escaped(name)}")


def _histogram(counts: Sequence[int]) -> Iterator[str]:
    # Bin b counts classes with 2^(b - 1) to 2^b - 1 images; bin 0 counts classes without images.
    classes = collections.Counter(count.bit_length() for count in counts)
    bins = range(min(classes, default=0), max(classes, default=-1) + 1)
    rows = [("images a class", "classes")]
    for b in bins:
        rows.append((f"{2**b // 2:,} to {2**b - 1:,}" if b > 1 else f"{b}", _number(classes[b])))
    head, *lines = _table(">>", rows)
    yield head
    room = WIDTH - len(head) - 2
    for line, b in zip(lines, bins, strict=True):
        yield f"{line}  {'#' * -(-classes[b] * room // max(classes.values()))}".rstrip()


def _left_out(info: index.DatasetInfo) -> Iterator[str]:
    reasons: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    path = info.path(index.REJECTED_FILE)
    try:
        for line in index.read_lines(path):
            row = json.loads(line)
            reasons[row["reason"]] += 1
            examples.setdefault(row["reason"], row["source_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not written by tripletmill ({error!r})") from error
    yield f"left out: {info.num_rejected:,} files" if info.num_rejected else "left out: nothing"
    width = max((len(_number(count)) for count in reasons.values()), default=0)
    for reason, count in reasons.most_common():
        yield _cut(f"  {_number(count):>{width}}  {escaped(reason)}")
        yield _cut(f"  {'':{width}}  such as {escaped(examples[reason])}")
    for title, names in {
        "classes with too few images": info.classes_left_out,
        "classes that have too few images, since some cannot be read": info.classes_fallen_below,
    }.items():
        if names:
            shown = [_cut(escaped(name), NAME_WIDTH) for name in names[:NAMES_SHOWN]]
            shown += ["..."] * (len(names) > NAMES_SHOWN)
            yield ""
            yield from _wrapped("", f"{title}: {len(names):,} ({', '.join(shown)})")
    if info.duplicates:
        counts = [f"{n:,} {escaped(kind)}" for kind, n in sorted(info.duplicates.items()) if n]
        yield ""
        yield from _wrapped("", f"groups of exact duplicates: {', '.join(counts) or 'none'}")


def _settings(info: index.DatasetInfo) -> Iterator[str]:
    if info.columns:
        named = [f"{name} (group)" if name == info.group else name for name in info.columns]
        yield from _wrapped("further columns: ", ", ".join(map(escaped, named)))
        yield ""
    yield "settings"
    width = max((len(key) for key in info.settings), default=0)
    for key, value in sorted(info.settings.items()):
        yield from _wrapped(f"  {escaped(key):{width}}  ", _value(value))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in sorted(value.items()))
    return escaped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _table(alignment: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the cells of each column; `alignment` has one < (left) or > (right) a column."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"{{:{side}{width}}}" for side, width in zip(alignment, widths, strict=True)]
    return ["  ".join(formats).format(*row) for row in rows]


def _wrapped(first: str, text: str) -> Iterable[str]:
    """Wraps a text that follows `first`; later lines are indented by the length of `first`."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first)) or [
        first.rstrip()
    ]


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _spread(values: Sequence[int] | np.ndarray) -> list[str]:
    """Minimum, median and maximum; dashes if there are no values."""
    if not len(values):
        return ["-"] * 3
    return [f"{value:,.1f}".removesuffix(".0") for value in np.percentile(values, (0, 50, 100))]


def _number(value: int) -> str:
    return f"{value:,}"
