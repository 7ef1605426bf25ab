"""Exact duplicates of small files, found in a pipeline in this process."""

import json
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from pipeline.preprocess.deduplicate import (
    DuplicateDecision,
    decide_all,
    deduplicate,
    leave_out_copies,
)
from pipeline.preprocess.listing import FileChunk, ListedInput
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing.duplicates import Copy, DuplicateGroup, decide
from preprocessing.writing.plan import make_listing, summarize
from tests.fixtures.images import encode
from tests.fixtures.jobs import SPLITS, job_settings
from tripletmill.errors import UsageError

PNG = encode("RGB")
FILES = {
    "a/copy.png": PNG,
    "a/first.png": PNG,
    "a/same size.png": PNG[:-1] + b"x",
    "b/empty.png": b"",
    "b/also empty.png": b"",
    "b/other.png": PNG + b"x",
}
GROUP = DuplicateGroup(
    "within class", [Copy(f"a/{n}.png", "a", "train") for n in ("copy", "first")]
)
COPIES = ["a/copy.png", "a/first.png"]


def references(folder: Path) -> list[ImageRef]:
    return [
        ImageRef(name, str(folder / name), name.split("/")[0], len(data), split="train")
        for name, data in FILES.items()
    ]


def write(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def run(folder: Path, check_chunks, check_decision, *, known=None, **settings) -> None:
    """Runs the step on two chunks; one file of each pair of copies is in each chunk."""
    refs = references(folder)
    listed_input = ListedInput(make_listing(summarize(refs), SPLITS), False, known)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        chunks = pipeline | beam.Create([FileChunk(refs[::2]), FileChunk(refs[1::2])])
        known_input = pipeline | "Known" >> beam.Create([listed_input])
        job = job_settings(folder / "out", **settings)
        kept, decision = chunks | deduplicate(job, known_input)
        assert_that(kept, check_chunks)
        assert_that(decision, check_decision, label="decision")


@pytest.mark.parametrize("known", [False, True])
def test_copies_are_found_and_kept(tmp_path, known):
    """Copies that are already known are not looked for, so the files need not be there."""
    if not known:
        write(tmp_path)

    def check_chunks(chunks):
        names = sorted(ref.source_id for chunk in chunks for ref in chunk.images)
        assert names == sorted(FILES)
        assert not any(chunk.rejected for chunk in chunks)

    def check_decision(decisions):
        assert decisions == [DuplicateDecision([GROUP], {}, frozenset(COPIES))]

    run(tmp_path, check_chunks, check_decision, known=[GROUP] if known else None)


def test_copies_are_dropped(tmp_path):
    write(tmp_path)
    reason = "exact duplicate within class"

    def check_chunks(chunks):
        names = sorted(ref.source_id for chunk in chunks for ref in chunk.images)
        assert names == sorted({*FILES} - {"a/first.png"})
        rejected = [row for chunk in chunks for row in chunk.rejected]
        assert rejected == [Rejected("a/first.png", "a", reason, lost=False)]

    def check_decision(decisions):
        group = decide(GROUP.copies, "drop")
        assert decisions == [DuplicateDecision([group], {"a/first.png": reason}, frozenset())]

    run(tmp_path, check_chunks, check_decision, duplicates="drop")


def test_copies_are_an_error_and_listed(tmp_path):
    job = job_settings(tmp_path, duplicates="error")
    assert decide_all([], job) == DuplicateDecision([], {}, frozenset())
    message = r"1 images occur more than once \(1 within class, 0 across classes, 0 across splits\)"
    with pytest.raises(UsageError, match=message):
        decide_all([GROUP], job)
    [line] = (tmp_path / ".work/duplicates.jsonl").read_text().splitlines()
    assert [row["source_id"] for row in json.loads(line)["images"]] == COPIES


def test_what_is_left_out_of_a_chunk(tmp_path):
    refs, before = references(tmp_path), Rejected("a/.hidden", "a", "hidden file", lost=False)
    decision = DuplicateDecision([], {"b/other.png": "why"}, frozenset())
    chunk = leave_out_copies(FileChunk(refs, [before]), decision)
    assert [ref.source_id for ref in chunk.images] == [*FILES][:-1]
    assert chunk.rejected == (before, Rejected("b/other.png", "b", "why", lost=False))
