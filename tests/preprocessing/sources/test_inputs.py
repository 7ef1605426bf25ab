"""Which source an input is opened as, and with which options."""

import pytest

from preprocessing.sources.folders import FlatFolderSource, FolderInput, FolderSource
from preprocessing.sources.inputs import InputOptions, open_source, path_of
from preprocessing.sources.manifests import ManifestInput, ManifestSource
from tripletmill.errors import UsageError

OPTIONS = InputOptions(FolderInput(nested=True), ManifestInput(label="id"), tfds_dir="/sets")


def test_a_folder_and_a_manifest_take_their_own_options(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/list.csv").write_text("path,id\na/1.png,a\n")
    folder = open_source(str(tmp_path / "images"), OPTIONS)
    assert folder == FolderSource(str(tmp_path / "images"), FolderInput(nested=True))
    assert isinstance(open_source(str(tmp_path / "images/list.csv"), OPTIONS), ManifestSource)
    with pytest.raises(UsageError, match="no column 'label'"):
        open_source(str(tmp_path / "images/list.csv"))


def test_a_folder_without_class_folders(tmp_path):
    assert open_source(str(tmp_path), labelled=False) == FlatFolderSource(str(tmp_path))
    with pytest.raises(UsageError, match="no class folders in it"):
        open_source(str(tmp_path))


def test_the_path_that_is_read():
    assert path_of("photos", OPTIONS) == "photos"
    assert path_of("tfrecord:photos/*", OPTIONS) == "photos/*"
    assert path_of("tfds:pets:1.0.0", OPTIONS) == "/sets"


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ("tfds:pets", "input tfds:pets: where it lies is missing; set --tfds_dir"),
        ("s3://photos", "local paths and gs://"),
        ("tfrecord:s3://photos", "local paths and gs://"),
        ("no/such/folder", "input no/such/folder: no such file or folder"),
        (__file__, "neither a folder of class folders nor .csv or .jsonl"),
    ],
)
def test_inputs_that_cannot_be_used(input, message):
    with pytest.raises(UsageError, match=message):
        open_source(input)
