"""The files that a manifest names: how manifests end, and what their paths are relative to."""

import os
import posixpath

from tripletmill.storage import bucket, storage

SUFFIXES = (".csv", ".jsonl")


def path_in_list(manifest: str, name: str) -> str:
    """Where a file lies that a list has under this name, or an image of it under its source id."""
    folder = posixpath.dirname(manifest)
    if storage.is_bucket(name):
        return name
    if not storage.is_bucket(manifest):
        return os.path.normpath(os.path.join(folder, name))
    bucket_name, prefix = bucket.split(folder)
    relative = posixpath.normpath(posixpath.join(prefix, name))
    return storage.join(f"{bucket.SCHEME}{bucket_name}", relative)
