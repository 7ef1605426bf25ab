"""Reads the JSON file that describes a folder and is written last, or refuses it in one line."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from tripletmill.errors import UsageError
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class InfoFile:
    """A kind of info file.

    Attributes:
      name: name of the file.
      what: what error messages call the folder, such as "embeddings".
      version: format version that this release reads and writes.
      make: what a user can do if the file is missing.
      again: what a user can do if the file is damaged or has another version.
    """

    name: str
    what: str
    version: int
    make: str
    again: str

    def path(self, directory: str) -> str:
        """Path of the file in a folder."""
        return storage.join(directory, self.name)

    def is_in(self, directory: str) -> bool:
        """Whether a folder holds such a file."""
        return storage.is_file(self.path(directory))

    @contextlib.contextmanager
    def reading(self, directory: str) -> Iterator[Any]:
        """Gives the file's JSON content to the block, which takes it apart.

        An AttributeError, KeyError, TypeError or ValueError in the block means that the content is
        damaged, and is turned into a UsageError.

        Raises:
          UsageError: there is no such file, or it is damaged.
        """
        try:
            data = storage.read(self.path(directory))
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = storage.is_folder(directory)
            problem = f"not finished, no {self.name} in it" if folder else "no such folder"
            raise UsageError(f"{self.what} {directory}: {problem}; {self.make}") from error
        try:
            yield json.loads(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.path(directory)}: not written by tripletmill, or damaged ({error!r});"
                f" {self.again}"
            ) from error

    def require_version(self, directory: str, version: Any) -> None:
        """Raises UsageError unless the format version is the one that this release reads."""
        if version != self.version:
            raise UsageError(
                f"{self.what} {directory}: format version {version}, this is version"
                f" {self.version}; {self.again}"
            )
