"""The steps that list the input, each in a small pipeline in this process."""

import dataclasses
import json
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from pipeline.preprocess import listing
from pipeline.preprocess.listing import (
    FileChunk,
    ListedInput,
    assign_splits,
    check_num_lost,
    list_files,
    summarize_input,
)
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing.plan import ClassSummary, make_listing, summarize
from tests.fixtures.jobs import SPLITS, job_settings
from tripletmill.errors import UsageError


def image(source_id: str) -> ImageRef:
    return ImageRef(source_id, f"/no/{source_id}", source_id.split("/")[0], size=9, modified=1)


IMAGES = [image(f"{name}/{i}.png") for name in "abc" for i in range(3)]
HIDDEN = Rejected("a/.hidden", "a", "hidden file", lost=False)
LOST = Rejected("a/link.png", "a", "link to nowhere")


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of two parts: the images of the first class, and all others."""

    named_by: str | None = None
    repeated: bool = False

    def parts(self) -> Iterator[bool]:
        yield from (True, False)

    def list_part(self, part: bool) -> Iterator[ImageRef | Rejected]:
        yield from (ref for ref in IMAGES if (ref.class_name == "a") == part)
        yield from [HIDDEN] if part else IMAGES[:1] * self.repeated


def test_every_file_is_listed_in_chunks(monkeypatch):
    monkeypatch.setattr(listing, "FILES_PER_CHUNK", 2)

    def check(chunks):
        assert sorted(len(c.images) + len(c.rejected) for c in chunks) == [2, 2, 2, 2, 2]
        names = sorted(ref.source_id for chunk in chunks for ref in chunk.images)
        assert names == [ref.source_id for ref in IMAGES]
        assert [row for chunk in chunks for row in chunk.rejected] == [HIDDEN]

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        assert_that(pipeline | list_files(Source(named_by="name")), check)


def test_a_repeated_name_is_an_error_if_a_feature_names_images():
    message = "feature 'name': 1 names occur more than once, such as a/0.png; each image needs"
    pipeline = beam.Pipeline(runner=FnApiRunner())
    pipeline | list_files(Source(named_by="name", repeated=True))
    with pytest.raises(UsageError, match=message):
        pipeline.run()


def test_the_input_is_summarized(tmp_path):
    chunks = [FileChunk(IMAGES[:4], [HIDDEN]), FileChunk(IMAGES[4:])]
    expected = make_listing(summarize([*IMAGES, HIDDEN]), SPLITS)

    def check(results):
        assert results == [ListedInput(expected, finished=False, known_duplicates=None)]

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        summary = pipeline | beam.Create(chunks) | summarize_input(job_settings(tmp_path))
        assert_that(summary, check)
    assert (expected.total.count, expected.total.lost) == (9, 0)


@pytest.mark.parametrize("finished", [True, False])
def test_splits_are_assigned_unless_the_output_is_finished(finished):
    chunk = FileChunk(IMAGES, [HIDDEN])
    listed_input = ListedInput(make_listing(summarize(IMAGES), SPLITS), finished, None)

    def check(chunks):
        if finished:
            assert chunks == []
            return
        [assigned] = chunks
        assert [ref.split for ref in assigned.images] == ["train"] * 6 + ["test"] * 3
        assert assigned.rejected == [HIDDEN]

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        assigned = pipeline | beam.Create([chunk]) | beam.FlatMap(assign_splits, listed_input)
        assert_that(assigned, check)


def test_too_many_lost_images_are_an_error_and_listed(tmp_path):
    job = job_settings(tmp_path)  # a tenth of the images may be lost
    check_num_lost(ClassSummary({None: 9}, lost=1), [LOST, HIDDEN], job)
    assert not [*tmp_path.iterdir()]
    message = (
        r"2 of 10 images in the input cannot be used \(at most 10% may be\), one of them: link"
    )
    with pytest.raises(UsageError, match=message):
        check_num_lost(ClassSummary({None: 8}, lost=2, example=LOST.reason), [LOST, HIDDEN], job)
    lines = (tmp_path / ".work/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["source_id"] for line in lines] == ["a/.hidden", "a/link.png"]
