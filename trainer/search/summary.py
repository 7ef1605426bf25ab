"""What was built or added, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.search import faiss_index, index_files
from trainer.search.build import FEWEST_QUERIES, GROWN
from trainer.search.recall import QUERIES


def summary(info: index_files.IndexInfo, num_inputs: int) -> list[str]:
    """What was built or added, for people: some lines of text."""
    how = "exact" if info.recall is None else "approximate"
    lines = [
        f"index {info.directory}: {info.num_rows:,} images, D = {info.dim}, {info.kind} ({how}),"
        f" {info.num_bytes / 1e6:,.1f} MB"
    ]
    for each in info.inputs[len(info.inputs) - num_inputs :]:
        lines.append(f"  {_name(each['input'])}: {_counts(each)}")
    if any(each["left_out"] for each in info.inputs[len(info.inputs) - num_inputs :]):
        lines.append(
            f"  left out: {info.path('left_out')}; to have them as they are now, build again"
        )
    if info.recall is None:
        if info.num_rows > faiss_index.FLAT_ROWS and info.kind == faiss_index.FLAT:
            lines.append(
                f"  above {faiss_index.FLAT_ROWS:,} images hnsw is faster; to have it, build again"
            )
        return lines
    recall = info.recall
    measured = ", ".join(f"{value}: {share:.3f}" for value, share in recall.by_setting.items())
    lines.append(
        f"  recall@10 against exact search, {recall.num_queries:,} images before they were added to"
        f" {recall.num_rows:,}: {recall.parameter} {measured}"
    )
    lines.append(f"  {recall.parameter} = {recall.setting}, for {recall.target:g}")
    if not recall.reached:
        lines.append(
            f"  warning: no {recall.parameter} reaches {recall.target:g}; try another kind"
        )
    if info.num_rows > GROWN * recall.num_rows + QUERIES:
        lines.append(
            f"  {info.num_rows - recall.num_rows:,} images were added since; it is measured again"
            f" when {FEWEST_QUERIES} or more are added at once"
        )
    return lines


def _name(given: Mapping[str, Any]) -> str:
    return " ".join(str(given[key]) for key in ("kind", "name") if given.get(key)) or "embeddings"


def _counts(counts: Mapping[str, int]) -> str:
    text = f"{counts['images']:,} images, {counts['added']:,} added"
    if counts["there_already"]:
        text += f", {counts['there_already']:,} there already"
    if counts["left_out"]:
        text += f", {counts['left_out']:,} left out (their source id is there, but they differ)"
    return text
