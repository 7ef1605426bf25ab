"""The JSON file, written last, that says what a folder holds: read, or refused in one line."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from tripletmill.errors import UsageError
from tripletmill.storage import storage


@dataclasses.dataclass(frozen=True)
class InfoFile:
    """One kind of such file.

    Attributes:
      name: of the file.
      what: the folder in errors, as in "embeddings".
      version: of the format that is written now.
      make: what to do where there is none.
      again: what to do where it is of another version.
    """

    name: str
    what: str
    version: int
    make: str
    again: str

    def path(self, directory: str) -> str:
        """Of the file."""
        return storage.join(directory, self.name)

    def is_in(self, directory: str) -> bool:
        """Whether a folder holds one."""
        return storage.is_file(self.path(directory))

    @contextlib.contextmanager
    def reading(self, directory: str) -> Iterator[Any]:
        """The file's content, to be taken apart inside the block.

        Raises:
          UsageError: there is no such file, or what is in it cannot be taken apart.
        """
        try:
            data = storage.read(self.path(directory))
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = storage.is_folder(directory)
            found = f"not finished, no {self.name} in it" if folder else "no such folder"
            raise UsageError(f"{self.what} {directory}: {found}; {self.make}") from error
        try:
            yield json.loads(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.path(directory)}: not written by tripletmill, or damaged ({error!r});"
                f" {self.again}"
            ) from error

    def require_version(self, directory: str, found: Any) -> None:
        """Raises UsageError for another version than the one that is written now."""
        if found != self.version:
            raise UsageError(
                f"{self.what} {directory}: format version {found}, this is version {self.version};"
                f" {self.again}"
            )
