"""Decides which job may write into an output: the job whose plan file lies there.

On a local disk, a lock keeps other jobs of this machine out. In a bucket, and for workers on other
machines, the plan file decides. A job writes its plan file only if there is none, or if the file is
still the version that the job looked at. Jobs with the same plan write the same bytes, so they may
run at the same time. A job whose plan file was replaced stops before it writes its next shard.
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
    """A plan file and the output that it belongs to.

    Attributes:
      output: the folder of the data set.
      content: the content of the plan file: settings, fingerprints, numbers of images and shards.
    """

    output: str
    content: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The path of the plan file."""
        return _plan_path(self.output)

    @property
    def folder(self) -> str:
        """The folder of this plan's sidecars. Every plan has its own."""
        return storage.join(work_folder(self.output), hashlib.sha256(self._bytes).hexdigest()[:16])

    @property
    def _bytes(self) -> bytes:
        return (json.dumps(self.content, sort_keys=True, indent=1) + "\n").encode()

    def take(self, *, replaces: str | None) -> None:
        """Writes the plan file, unless this plan already lies there.

        Args:
          replaces: the version of the plan file that may be replaced, as given by `plan_version`.

        Raises:
          UsageError: another job has written a different plan in the meantime.
        """
        storage.make_folder(self.folder)
        if read_plan(self.output) != self.content:
            try:
                storage.write_file(self.path, self._bytes, replaces=replaces)
            except storage.Replaced:
                self.check()

    def check(self) -> None:
        """Raises UsageError if the plan file in the output is not this plan any more."""
        if read_plan(self.output) != self.content:
            raise UsageError(f"output {self.output}: another job has begun to write there")


def work_folder(output: str) -> str:
    """The folder of the files that are needed only until the data set is finished."""
    return storage.join(output, WORK_FOLDER)


def read_plan(output: str) -> Mapping[str, Any] | None:
    """The content of an output's plan file, or None if there is no plan file."""
    try:
        return json.loads(storage.read(_plan_path(output)))
    except FileNotFoundError:
        return None


def plan_version(output: str) -> str | None:
    """The version of an output's plan file, for `Claim.take`."""
    return storage.version(_plan_path(output))


def _plan_path(output: str) -> str:
    return storage.join(work_folder(output), PLAN_FILE)
