"""Reads from TF_CONFIG which workers a run has."""

import json
import os

from tripletmill.errors import UsageError


def cluster() -> tuple[list[str], int] | None:
    """Reads TF_CONFIG from the environment.

    Returns:
      The addresses of all workers, "HOST:PORT" each, and the index of this process among them; None
      if TF_CONFIG is not set or empty.

    Raises:
      UsageError: TensorFlow would not understand its value.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        config = json.loads(text)
        addresses = [str(address) for address in config["cluster"]["worker"]]
        kind, number = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            'TF_CONFIG must be {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type":'
            f' "worker", "index": N}}}}, not {text[:200]!r} ({type(error).__name__}: {error})'
        ) from error
    if kind != "worker" or {*config["cluster"]} != {"worker"}:
        raise UsageError(f"TF_CONFIG: all tasks must be of type 'worker', not {kind!r}")
    if not 0 <= number < len(addresses):
        raise UsageError(
            f"TF_CONFIG: task.index is {number}, but there are {len(addresses)} workers"
        )
    if len({*addresses}) < len(addresses):
        raise UsageError("TF_CONFIG: two workers have the same address")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(
                f"TF_CONFIG: the address of a worker must be HOST:PORT, not {address!r}"
            )
    return addresses, number
