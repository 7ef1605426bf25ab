"""Embedding jobs whose model, input and output are in a bucket of a live emulator."""

import hashlib

import pytest

from tests.fixtures.cloud.emulators import go_emulator
from tests.fixtures.datasets import small_data_set
from tests.fixtures.embedding_jobs import MODULE, SETTINGS, run
from tests.fixtures.exported import export_model
from tests.fixtures.jobs import content, start

BUCKET = "pictures"


@pytest.mark.parametrize(("flag", "what"), [("data_dir", "data"), ("images", "input")])
def test_all_in_a_bucket(tmp_path, flag, what):
    small_data_set(tmp_path, classes=4, images=5)
    export_model(tmp_path / "run/export")
    paths = {"data": tmp_path / "data", "input": tmp_path / "images"}
    run(tmp_path / "run", tmp_path / "local", **{what: paths[what]})
    with go_emulator() as emulator:
        emulator.make_bucket(BUCKET)
        for folder in (tmp_path / "run", paths[what]):
            for path in folder.rglob("*"):
                if path.is_file():
                    name = str(path.relative_to(tmp_path))
                    emulator.put(BUCKET, name, path.read_bytes())
        flags = [
            f"--model_dir=gs://{BUCKET}/run",
            f"--{flag}=gs://{BUCKET}/{paths[what].name}",
            f"--output=gs://{BUCKET}/out",
            *SETTINGS,
        ]
        log = tmp_path / "log"
        process = start(flags, log=log, environment=emulator.environment(), module=MODULE)
        process.join(120)
        assert process.exitcode == 0, log.read_text()
        found = {
            name.removeprefix("out/"): hashlib.sha256(emulator.get(BUCKET, name)).hexdigest()
            for name in emulator.names(BUCKET, "out/")
        }
    local = content(tmp_path / "local")
    assert found.keys() == local.keys()
    different = {name for name in local if local[name] != found[name]}
    # The fingerprint of the images is made of checksums there and of file sizes here.
    assert different == (set() if what == "data" else {"embeddings_info.json"})
