"""Manifests, which are lists of images: their file name suffixes, and the paths in them."""

import os
import posixpath

from tripletmill.storage import bucket, storage

SUFFIXES = (".csv", ".jsonl")


def path_in_manifest(manifest: str, name: str) -> str:
    """Returns the path of a file that a manifest names.

    Args:
      manifest: local path or gs:// path of the manifest.
      name: the file's name in the manifest, or the source id of an image from the manifest. It is
        a gs:// path, an absolute path on a local disk, or a path relative to the manifest's folder.

    Returns:
      The path without "." and ".." parts. A gs:// path is returned unchanged.
    """
    folder = posixpath.dirname(manifest)
    if storage.is_bucket(name):
        return name
    if not storage.is_bucket(manifest):
        return os.path.normpath(os.path.join(folder, name))
    bucket_name, prefix = bucket.split(folder)
    relative = posixpath.normpath(posixpath.join(prefix, name))
    return storage.join(f"{bucket.SCHEME}{bucket_name}", relative)
