"""Queries with their answers, as a table or as JSON lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from trainer.search.index import Entry, Neighbour
from tripletmill.formats.embeddings import UNKNOWN_LABEL
from tripletmill.inspection.describe import escaped


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found for a query.

    Attributes:
      query: path of the image file, or source id.
      neighbours: nearest first; empty where there is a problem.
      entry: the image of the index that was asked about, None for an image file.
      problem: why it could not be answered.
    """

    query: str
    neighbours: Sequence[Neighbour] = ()
    entry: Entry | None = None
    problem: str | None = None


def table(answer: Answer) -> str:
    """Lines for people: the query, then a neighbour each: place, distance, class, split, name."""
    lines = [escaped(answer.query) + _of(answer.entry)]
    rows = [
        (
            str(place),
            f"{each.distance:.4f}",
            escaped(each.entry.class_name or "-"),
            escaped(each.entry.split or "-"),
            escaped(each.entry.source_id),
        )
        for place, each in enumerate(answer.neighbours, 1)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for place, distance, *texts in rows:
        numbers = f"{place:>{widths[0]}}  {distance:>{widths[1]}}"
        padded = [f"{text:{width}}" for text, width in zip(texts, widths[2:], strict=True)]
        lines.append(f"  {numbers}  {'  '.join(padded)}".rstrip())
    if not rows:
        lines.append("  no other image")
    return "\n".join(lines)


def _of(entry: Entry | None) -> str:
    known = [escaped(each) for each in (entry.class_name, entry.split) if each] if entry else []
    return f" ({', '.join(known)})" if known else ""


def json_line(answer: Answer) -> str:
    """An object of "query" and either "neighbours" or "error"; what is not known is null."""
    found = neighbours_content(answer.neighbours)
    outcome = {"neighbours": found} if answer.problem is None else {"error": answer.problem}
    return json.dumps({"query": answer.query, **outcome})


def neighbours_content(neighbours: Sequence[Neighbour]) -> list[dict[str, object]]:
    """An object for each, as JSON has them."""
    return [
        {"source_id": each.entry.source_id, "distance": each.distance, **entry_content(each.entry)}
        for each in neighbours
    ]


def entry_content(entry: Entry) -> dict[str, object]:
    """An object of "source_id", "class", "label" and "split"; what is not known is null."""
    return {
        "source_id": entry.source_id,
        "class": entry.class_name,
        "label": None if entry.label == UNKNOWN_LABEL else entry.label,
        "split": entry.split,
    }
