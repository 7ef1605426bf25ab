"""Which job may write into an output: the one whose plan lies there.

On a local disk a lock keeps a second job of this machine out. In a bucket, and for workers on other
machines, the plan file decides: it is created only where there is none, or replaces the very one
that was looked at. Jobs with the same plan write the same bytes, so that they may run at once; a
job whose plan has gone stops before its next shard.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tripletmill.errors import UsageError
from tripletmill.formats.index import WORK_FOLDER
from tripletmill.storage import storage

PLAN_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A plan, as it lies in the output.

    Attributes:
      output: folder of the data set.
      content: of the plan file: settings, fingerprints, numbers of images and shards.
    """

    output: str
    content: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The plan file."""
        return storage.join(work_folder(self.output), PLAN_FILE)

    @property
    def folder(self) -> str:
        """Where this plan's sidecars lie, apart from those of any other."""
        return storage.join(work_folder(self.output), hashlib.sha256(self._bytes).hexdigest()[:16])

    @property
    def _bytes(self) -> bytes:
        return (json.dumps(self.content, sort_keys=True, indent=1) + "\n").encode()

    def take(self, *, replaces: str | None) -> None:
        """Writes the plan file in place of that version, unless it is the same.

        Raises:
          UsageError: another job has written another one.
        """
        storage.make_folder(self.folder)
        if read_plan(self.output) != self.content:
            try:
                storage.write_file(self.path, self._bytes, replaces=replaces)
            except storage.Replaced:
                self.check()

    def check(self) -> None:
        """Raises UsageError where another job has begun in this output."""
        if read_plan(self.output) != self.content:
            raise UsageError(f"output {self.output}: another job has begun to write there")


def work_folder(output: str) -> str:
    """Folder of what is needed until a data set is finished."""
    return storage.join(output, WORK_FOLDER)


def read_plan(output: str) -> Mapping[str, Any] | None:
    """The plan of an unfinished data set, None where there is none."""
    try:
        return json.loads(storage.read(storage.join(work_folder(output), PLAN_FILE)))
    except FileNotFoundError:
        return None


def plan_version(output: str) -> str | None:
    """Of the plan file, for `take`."""
    return storage.version(storage.join(work_folder(output), PLAN_FILE))
