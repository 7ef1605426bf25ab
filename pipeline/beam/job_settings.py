"""What the settings of all jobs have in common, and what a job needs to know about its output."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from preprocessing.writing.claim import read_plan
from tripletmill.errors import UsageError, require_positive
from tripletmill.storage import storage

DATA_SET_NOUN = "data set"  # A plan file without a noun is the plan of a data set.


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """A kind of output: a data set, or embeddings.

    Attributes:
      noun: what messages call the output.
      noun_with_article: the noun with its article, if it takes one.
      info_file: name of the file that is written last. An output that has it is finished.
      read: returns the settings and the input fingerprint of the finished output in a folder.
      remove: removes an output that has the given settings from a folder, whether it is finished
        or not. The work folder stays.
    """

    noun: str
    noun_with_article: str
    info_file: str
    read: Callable[[str], Mapping[str, Any]]
    remove: Callable[[str, Mapping[str, Any]], None]

    def is_finished(self, folder: str) -> bool:
        """Returns whether a folder holds a finished output of this kind."""
        return storage.is_file(storage.join(folder, self.info_file))

    def description_in(self, folder: str) -> Mapping[str, Any] | None:
        """Returns the settings and the input fingerprint of the output in a folder.

        An unfinished output is described by its plan. None means that the folder holds no output of
        this kind.
        """
        if self.is_finished(folder):
            return self.read(folder)
        plan = read_plan(folder)
        return plan if plan is not None and plan.get("noun", DATA_SET_NOUN) == self.noun else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """The settings that every job has. They are sent to its workers.

    Attributes:
      output: absolute path of the output folder.
      images_per_shard: approximate number of images in one output file (shard), at least 1.
      max_rejected_share: the job fails if a larger share of the images cannot be used, 0 to 1.
      threads: number of images that a worker decodes at once; None for its number of cores.
      overwrite: whether the job may replace what an earlier job wrote into the output folder.

    Raises:
      UsageError: a value is out of range.
    """

    gin_name: ClassVar[str]  # of the function that runs the job
    output_kind: ClassVar[OutputKind]
    verb: ClassVar[str]  # what the job does with an image, for the progress line

    output: str
    images_per_shard: int
    max_rejected_share: float
    threads: int | None
    overwrite: bool

    def __post_init__(self) -> None:
        require_positive(self.gin_name, images_per_shard=self.images_per_shard)
        if self.threads is not None:
            require_positive(self.gin_name, threads=self.threads)
        if not 0 <= self.max_rejected_share <= 1:
            raise UsageError(
                f"{self.gin_name}.max_rejected_share {self.max_rejected_share}: 0 to 1"
            )

    @property
    def threads_here(self) -> int:
        """Threads of the worker that asks.

        A worker may have another number of cores than the machine that starts the job.
        """
        return self.threads or os.cpu_count() or 1

    def settings(self) -> dict[str, Any]:
        """Returns what decides the bytes of the output, apart from the input, as JSON values."""
        raise NotImplementedError
