"""Progress, as it is read from the files that the workers write."""

import time

from pipeline.beam import progress
from pipeline.beam.outputs import claim_output
from preprocessing.writing import sidecars
from tests.fixtures.jobs import job_settings
from tripletmill.cli import progress as lines


def test_images_of_all_shards_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lines, "LOG_SECONDS", 0.0)
    job, printed = job_settings(tmp_path), ""

    def wait_for(text: str) -> None:
        nonlocal printed
        deadline = time.monotonic() + 30
        while text not in printed:
            assert time.monotonic() < deadline, printed
            time.sleep(0.01)
            printed += capsys.readouterr().err

    with progress.ShardProgress(job.output, "embedded"):
        wait_for("listing the input ...\n")
        claim = claim_output(job, fingerprint="f", versions="v", num_images=9, num_shards=2)
        for shard, images, total in (("a", 3, 3), ("b", 4, 7)):
            with sidecars.progress(claim.folder, shard) as add:
                add(images)
            wait_for(f"embedded {total} of 9 images")
