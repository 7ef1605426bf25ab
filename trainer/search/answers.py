"""Answers to queries, as a table or as JSON lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from trainer.search.index import Entry, Neighbour
from tripletmill.formats.embeddings import UNKNOWN_LABEL
from tripletmill.inspection.describe import escaped


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
      query: path of the image file, or source id.
      neighbours: the neighbours, nearest first. Empty if there is a problem.
      entry: the image of the index that is the query. None for an image file.
      problem: why the query could not be answered. None if it was answered.
    """

    query: str
    neighbours: Sequence[Neighbour] = ()
    entry: Entry | None = None
    problem: str | None = None


def table(answer: Answer) -> str:
    """Lines of text: the query, then one line for each neighbour.

    The columns are rank, distance, class, split and source id.
    """
    lines = [escaped(answer.query) + _in_brackets(answer.entry)]
    rows = [
        (
            str(rank),
            f"{each.distance:.4f}",
            escaped(each.entry.class_name or "-"),
            escaped(each.entry.split or "-"),
            escaped(each.entry.source_id),
        )
        for rank, each in enumerate(answer.neighbours, 1)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, ">><<<", widths, strict=True)
        text = "  ".join(f"{cell:{align}{width}}" for cell, align, width in cells)
        lines.append(f"  {text}".rstrip())
    if not rows:
        lines.append("  no other image")
    return "\n".join(lines)


def _in_brackets(entry: Entry | None) -> str:
    known = [escaped(each) for each in (entry.class_name, entry.split) if each] if entry else []
    return f" ({', '.join(known)})" if known else ""


def json_line(answer: Answer) -> str:
    """A JSON object with "query" and either "neighbours" or "error"."""
    if answer.problem is not None:
        return json.dumps({"query": answer.query, "error": answer.problem})
    return json.dumps({"query": answer.query, "neighbours": neighbours_content(answer.neighbours)})


def neighbours_content(neighbours: Sequence[Neighbour]) -> list[dict[str, object]]:
    """A JSON object for each neighbour: that of its image, with "distance"."""
    return [
        {"source_id": each.entry.source_id, "distance": each.distance, **entry_content(each.entry)}
        for each in neighbours
    ]


def entry_content(entry: Entry) -> dict[str, object]:
    """A JSON object with "source_id", "class", "label" and "split". Unknown values are null."""
    return {
        "source_id": entry.source_id,
        "class": entry.class_name,
        "label": None if entry.label == UNKNOWN_LABEL else entry.label,
        "split": entry.split,
    }
