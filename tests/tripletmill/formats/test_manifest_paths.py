"""The paths of the files that a manifest names."""

import pytest

from tripletmill.formats.manifest_paths import path_in_manifest


@pytest.mark.parametrize(
    ("manifest", "name", "path"),
    [
        ("/data/lists/all.csv", "a/b.jpg", "/data/lists/a/b.jpg"),
        ("/data/lists/all.csv", "./../b.jpg", "/data/b.jpg"),
        ("/data/lists/all.csv", "/other/b.jpg", "/other/b.jpg"),
        ("/data/all.csv", "gs://photos/./b.jpg", "gs://photos/./b.jpg"),
        ("lists/all.csv", "b.jpg", "lists/b.jpg"),
        ("all.csv", "b.jpg", "b.jpg"),
        ("gs://photos/lists/all.csv", "a/b.jpg", "gs://photos/lists/a/b.jpg"),
        ("gs://photos/lists/all.csv", "../b.jpg", "gs://photos/b.jpg"),
        ("gs://photos/all.csv", "b.jpg", "gs://photos/b.jpg"),
        ("gs://photos/all.csv", "gs://others/b.jpg", "gs://others/b.jpg"),
    ],
)
def test_path_in_a_manifest(manifest, name, path):
    assert path_in_manifest(manifest, name) == path
