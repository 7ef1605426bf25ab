"""The last step of a job: from shards and sidecars to a finished data set."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.splits import SortedSplits
from preprocessing.writing.claim import Claim
from preprocessing.writing.commit import (
    check_rejected,
    commit,
    rejected_lines,
    remove_data_set,
)
from preprocessing.writing.duplicates import Copy, decide
from preprocessing.writing.plan import KeptImages, make_plan
from preprocessing.writing.shards import ShardTask, write_shard
from tests.fixtures.images import encode
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.images import ImageSettings

IMAGE = encode("RGB", (20, 16))
# Three classes with two images each. The split "train" has two shards.
KEPT = {key: KeptImages(2) for key in (("a", "train"), ("b", "test"), ("c", "train"))}
PLAN = make_plan(KEPT, splits=SortedSplits(), images_per_shard=2)
LEFT_OUT = [Rejected("z/hidden", "", "hidden file", lost=False)]
DUPLICATES = [decide([Copy("a/0", "a", "train"), Copy("a/1", "a", "train")], "keep")]
SETTINGS = {"name": "toy", "columns": ["camera"], "group": "camera", "min_images": 2}
FILES = {
    "classes.parquet",
    "dataset_info.json",
    "duplicates.jsonl",
    "features.json",
    "rejected.jsonl",
    "toy-test.index.parquet",
    "toy-test.tfrecord-00000-of-00001",
    "toy-train.index.parquet",
    "toy-train.tfrecord-00000-of-00002",
    "toy-train.tfrecord-00001-of-00002",
}


class Job:
    """A small job that has written its shards."""

    def __init__(self, folder: Path, *, broken: str = "") -> None:
        """Makes a file that is no image of each source id that begins with `broken`, if any."""
        self.folder = folder
        content = {"settings": SETTINGS, "input_fingerprint": "00ff"}
        self.claim = Claim(str(folder / "data"), content)
        self.claim.take(replaces=None)
        for label, (name, split) in enumerate(KEPT):
            images = []
            for source_id in (f"{name}/0", f"{name}/1"):
                data = b"no image" if broken and source_id.startswith(broken) else IMAGE
                path = folder / source_id.replace("/", "_")
                path.write_bytes(data)
                ref = ImageRef(source_id, str(path), name, len(data), extra=("x",))
                images.append((label, ref))
            shard = PLAN.whole_shard(name, split)
            assert shard is not None
            file_name = index.shard_file("toy", split, shard, PLAN.num_shards[split])
            write_shard(
                ShardTask(file_name, shard, images, columns=("camera",)),
                claim=self.claim,
                settings={},
                image=ImageSettings(short_side=16),
                threads=1,
            )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def commit(self, *, max_rejected_share: float = 0.5) -> index.DatasetInfo:
        commit(
            PLAN,
            self.claim,
            left_out=iter(LEFT_OUT),
            groups=iter(DUPLICATES),
            num_listed=6,
            max_rejected_share=max_rejected_share,
        )
        return index.load_info(str(self.data))


def test_a_finished_data_set(tmp_path):
    job = Job(tmp_path, broken="c/1")
    info = job.commit()
    assert {path.name for path in job.data.iterdir()} == FILES  # the work folder is gone
    assert (info.num_shards, info.num_images) == ({"test": 1, "train": 2}, {"test": 2, "train": 3})
    assert (info.num_classes, info.shard_lengths["train"]) == ({"test": 1, "train": 2}, [2, 1])
    assert (info.num_rejected, info.classes_fallen_below) == (2, ["c"])
    assert (info.settings, info.input_fingerprint) == (SETTINGS, "00ff")
    assert (list(info.columns), info.group) == (["x_camera"], "x_camera")
    assert info.duplicates == {"within class": 1, "across classes": 0, "across splits": 0}
    rejected = (job.data / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["source_id"] for line in rejected] == ["c/1", "z/hidden"]
    assert pq.read_table(job.data / "classes.parquet").to_pylist() == [
        {"label": 0, "name": "a", "split": "train", "count": 2},
        {"label": 1, "name": "b", "split": "test", "count": 2},
        {"label": 2, "name": "c", "split": "train", "count": 1},
    ]
    rows = pq.read_table(job.data / "toy-train.index.parquet")
    assert rows["source_id"].to_pylist() == ["a/0", "a/1", "c/0"]
    assert rows["x_camera"] == pa.chunked_array([["x"] * 3])


def test_files_of_an_earlier_plan_are_removed(tmp_path):
    job = Job(tmp_path)
    for name in ("toy-val.index.parquet", "toy-val.tfrecord-00000-of-00007", "toyish", "toy-notes"):
        (job.data / name).touch()
    job.commit()
    assert {path.name for path in job.data.iterdir()} == FILES | {"toyish", "toy-notes"}


def test_too_many_images_are_rejected(tmp_path):
    job = Job(tmp_path, broken="c/1")
    with pytest.raises(UsageError, match=r"^1 of 6 images rejected \(at most 10% may be\): 1 x "):
        job.commit(max_rejected_share=0.1)
    assert not index.is_finished(str(job.data))
    assert (job.data / "rejected.jsonl").exists()
    job.commit()


def test_a_split_without_a_readable_image(tmp_path):
    with pytest.raises(UsageError, match=r"^split test has no readable image, 2 of 6 images"):
        Job(tmp_path, broken="b/").commit(max_rejected_share=1)


def test_a_shard_is_missing(tmp_path):
    job = Job(tmp_path)
    (job.data / "toy-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(UsageError, match=r"toy-train.tfrecord-00001-of-00002 is incomplete"):
        job.commit()
    assert not index.is_finished(str(job.data))


def test_a_job_that_was_overtaken_does_not_finish(tmp_path):
    job = Job(tmp_path)
    plan_file = Path(job.claim.path)
    plan_file.write_text('{"another": "plan"}')
    with pytest.raises(UsageError, match="another job has begun to write there"):
        job.commit()
    assert not index.is_finished(str(job.data))


def test_rejected_lines():
    rejected = [Rejected("b", "ü", "y"), Rejected("b", "ü", "x"), Rejected("a", "", "z")]
    assert rejected_lines(rejected).decode() == (
        '{"source_id": "a", "class": "", "reason": "z"}\n'
        '{"source_id": "b", "class": "ü", "reason": "x"}\n'
        '{"source_id": "b", "class": "ü", "reason": "y"}\n'
    )
    assert rejected_lines([]) == b""


def test_the_most_frequent_reasons_are_named():
    reasons = ["w", *2 * ["x"], *3 * ["y"], *4 * ["z"]]
    lost = [Rejected(f"{i}", "", reason) for i, reason in enumerate(reasons)]
    check_rejected(lost, num_listed=20, max_share=0.5, output="out")
    with pytest.raises(UsageError) as caught:
        check_rejected(lost, num_listed=20, max_share=0.4, output="out")
    assert str(caught.value) == (
        "10 of 20 images rejected (at most 40% may be): 4 x z; 3 x y; 2 x x; see out/rejected.jsonl"
    )


def test_a_data_set_is_removed_and_nothing_else(tmp_path):
    job = Job(tmp_path)
    job.commit()
    for name in ("notes.txt", "toys-train.index.parquet"):
        (job.data / name).touch()
    remove_data_set(str(job.data), "toy")
    assert {path.name for path in job.data.iterdir()} == {"notes.txt", "toys-train.index.parquet"}
    remove_data_set(str(tmp_path / "none"), "toy")
