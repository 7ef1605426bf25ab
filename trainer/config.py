"""The gin configuration of a command line, and the copy of it in the folder of the run."""

import argparse
import os

import gin

from trainer.configurables import CALLED, CONFIGURABLES
from trainer.runs.folder import CONFIG_FILE, statements
from tripletmill.cli.commandline import parse_gin
from tripletmill.errors import UsageError

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
      flags: the flags of trainer.main. Without a `gin_file`, the configuration in `model_dir` is
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


def common() -> str:
    """Returns the part of the configuration that all workers must share, one statement a line."""
    # The line length is large, because gin would break a long path into several lines.
    lines = statements(gin.config_str(max_line_length=_LONGEST))
    return "\n".join(line for line in lines if line and line.partition(" = ")[0] not in _OF_HOST)
