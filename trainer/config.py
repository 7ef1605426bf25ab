"""The gin configuration of a command line, and the copy of it in the folder of the run."""

import argparse
import difflib
import itertools
import os
import re

import gin

from trainer.configurables import CALLED, CONFIGURABLES
from trainer.runs.folder import CONFIG_FILE
from trainer.runs.write_errors import naming_write_errors
from tripletmill.cli.commandline import parse_gin
from tripletmill.errors import UsageError
from tripletmill.storage.storage import write_file

_LONGEST = 10_000
# Parameters that may differ between hosts, because their disks, memory and start times differ.
_OF_HOST = (
    "MODEL_DIR",
    "DATA_DIR",
    "Reading.cache",
    "Reading.folder",
    "Reading.stream",
    "make_strategy.start_seconds",
)


def load(flags: argparse.Namespace) -> str:
    """Parses the configuration of a command line.

    Args:
      flags: those of trainer.main. Without a `gin_file`, the configuration in `model_dir` is
        parsed.

    Returns:
      The folder of the run.
    """
    files = flags.gin_file
    defaults = []
    if not files:
        saved = os.path.join(flags.model_dir or "", CONFIG_FILE)
        if not os.path.isfile(saved):
            there = f" and there is no {saved}" if flags.model_dir else ""
            raise UsageError(f"--gin_file is missing{there}; configurations are in gin/")
        files = [saved]
        defaults = ["include 'base.gin'"]  # it may wire parameters that are newer than the run
    folders = {"DATA_DIR": flags.data_dir, "MODEL_DIR": flags.model_dir}
    by_flag = [f"{name} = {path!r}" for name, path in folders.items() if path]
    parse_gin(
        CONFIGURABLES,
        files=files,
        bindings=[*flags.gin_param, *by_flag],
        required={f"%{name}": name.lower() for name in folders},
        defaults=defaults,
        called=CALLED[flags.mode],
    )
    return gin.query_parameter("%MODEL_DIR")


def show_changes(model_dir: str) -> None:
    """Prints how this configuration differs from one that is in the folder of the run."""
    path = os.path.join(model_dir, CONFIG_FILE)
    if shown := _changes(path):
        print(f"note: {path} is from another configuration; what differs:")
        # Flushed, so that it is printed before an error that may follow.
        print("\n".join(f"  {line}" for line in shown), flush=True)


def common() -> str:
    """Returns the part of the configuration that all workers must share, one statement a line."""
    # The line length is large, because gin would break a long path into several lines.
    lines = _statements(gin.config_str(max_line_length=_LONGEST))
    return "\n".join(line for line in lines if line and line.partition(" = ")[0] not in _OF_HOST)


def save(model_dir: str) -> None:
    """Writes the configuration into the folder of the run.

    If a different one is there, it is kept as config.1.gin, config.2.gin, ...
    """
    path = os.path.join(model_dir, CONFIG_FILE)
    if _changes(path):
        kept = next(
            name
            for number in itertools.count(1)
            if not os.path.exists(name := f"{path.removesuffix('.gin')}.{number}.gin")
        )
        with open(path, encoding="utf-8") as file, naming_write_errors(kept):
            write_file(kept, file.read().encode())
        print(f"the former {path} is kept as {kept}")
    with naming_write_errors(path):
        os.makedirs(model_dir, exist_ok=True)
        write_file(path, gin.config_str().encode())


def _changes(path: str) -> list[str]:
    """Returns the statements in which this configuration and the one in a file differ."""
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        before = file.read()
    changes = difflib.unified_diff(_statements(before), _statements(gin.config_str()), n=0)
    return [line for line in changes if not line.startswith(("@", "---", "+++"))]


def _statements(config: str) -> list[str]:
    """Splits into statements, and leaves out comments and MODEL_DIR: a run may be moved."""
    joined = re.sub(r"\\\n\s*", "", config)
    return [line for line in joined.splitlines() if not line.startswith(("#", "MODEL_DIR"))]
