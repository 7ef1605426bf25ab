"""The workers of a run, as TF_CONFIG names them."""

import json
import os

from tripletmill.errors import UsageError


def cluster() -> tuple[list[str], int] | None:
    """Addresses of the workers, and which of them this process is; None without a TF_CONFIG.

    Raises:
      UsageError: it is not what TensorFlow understands.
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
            'TF_CONFIG: {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker",'
            f' "index": N}}}}, not {text[:200]!r} ({type(error).__name__}: {error})'
        ) from error
    if kind != "worker" or {*config["cluster"]} != {"worker"}:
        raise UsageError(f"TF_CONFIG: tasks of type 'worker' only, not {kind!r}")
    if not 0 <= number < len(addresses):
        raise UsageError(f"TF_CONFIG: task.index {number}, but {len(addresses)} workers")
    if len({*addresses}) < len(addresses):
        raise UsageError("TF_CONFIG: two workers have the same address")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"TF_CONFIG: worker {address!r}: HOST:PORT")
    return addresses, number
