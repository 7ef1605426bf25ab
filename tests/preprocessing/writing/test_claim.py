"""Which job may write into an output: the one whose plan lies there."""

import json

import pytest

from preprocessing.writing.claim import Claim, plan_version, read_plan, work_folder
from tripletmill.errors import UsageError
from tripletmill.storage import storage

PLAN = {"settings": {"name": "toy"}, "num_shards": 2}
OTHER_PLAN = {**PLAN, "num_shards": 3}


def test_a_plan_is_there_once_it_is_taken(tmp_path):
    claim = Claim(str(tmp_path), PLAN)
    assert read_plan(claim.output) is None
    with pytest.raises(UsageError, match="another job has begun to write there"):
        claim.check()
    claim.take(replaces=plan_version(claim.output))
    assert read_plan(claim.output) == PLAN
    assert storage.is_folder(claim.folder)
    claim.check()


def test_a_plan_that_lies_there_is_not_written_again(tmp_path, monkeypatch):
    claim = Claim(str(tmp_path), PLAN)
    claim.take(replaces=None)
    monkeypatch.setattr(storage, "write_file", pytest.fail)
    Claim(str(tmp_path), dict(reversed(PLAN.items()))).take(replaces=None)


def test_a_job_whose_plan_was_replaced_must_stop(tmp_path):
    first, second = Claim(str(tmp_path), PLAN), Claim(str(tmp_path), OTHER_PLAN)
    first.take(replaces=None)
    second.take(replaces=None)
    second.check()
    with pytest.raises(UsageError, match=f"^output {tmp_path}: another job has begun to write"):
        first.check()


@pytest.mark.parametrize("winner", [PLAN, OTHER_PLAN])
def test_two_jobs_that_take_an_output_at_the_same_time(tmp_path, monkeypatch, winner):
    """In a bucket the second write fails. This is an error only if the plans differ."""
    write_file = storage.write_file

    def another_is_faster(path, data, *, replaces):
        write_file(path, json.dumps(winner).encode())
        raise storage.Replaced

    monkeypatch.setattr(storage, "write_file", another_is_faster)
    claim = Claim(str(tmp_path), PLAN)
    if winner == PLAN:
        claim.take(replaces="")
    else:
        with pytest.raises(UsageError, match="another job has begun to write there"):
            claim.take(replaces="")
    assert read_plan(claim.output) == winner


def test_every_plan_has_its_own_folder_of_sidecars(tmp_path):
    folders = {Claim(str(tmp_path), plan).folder for plan in (PLAN, OTHER_PLAN, {**PLAN})}
    assert len(folders) == 2
    assert all(folder.startswith(work_folder(str(tmp_path)) + "/") for folder in folders)
