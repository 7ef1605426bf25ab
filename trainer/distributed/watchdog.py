"""A process that ends another process that waits too long. It does not import TensorFlow.

  python -I trainer/distributed/watchdog.py PID SECONDS NUMBER HOST:PORT ...

It ends silently when its standard input is closed.
"""

import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

ANSWER_SECONDS = 1.0
# Ends the watched process, with the number of this signal as its exit code.
SIGNAL = signal.SIGHUP


def silent(addresses: Sequence[str], number: int) -> list[str]:
    """Names of the other workers to which no connection can be made."""
    return [name for name, address in _others(addresses, number) if not _answers(address)]


def watch(pid: int, seconds: float, addresses: Sequence[str], number: int) -> None:
    """Waits for the end of standard input; if it takes too long, ends the process `pid`.

    Before it ends the process, it says which workers are missing.

    Args:
      pid: the process that waits for the other workers.
      seconds: how long it may wait.
      addresses: addresses of all workers.
      number: index of the process among them.
    """
    if select.select([sys.stdin], [], [], seconds)[0]:
        return
    if missing := silent(addresses, number):
        problem = f"no answer from {', '.join(missing)}; "
    else:
        names = ", ".join(name for name, _ in _others(addresses, number))
        problem = (
            f"all answer ({names}), but not as workers of this run; make sure that nothing else"
            " uses these ports and that no worker of an earlier start is left, then "
        )
    print(
        f"error: not all of {len(addresses)} workers have joined in {seconds:.0f} s; {problem}"
        "start all workers again with the same command",
        file=sys.stderr,
        flush=True,
    )
    os.kill(pid, SIGNAL)


def _others(addresses: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Name and address of each worker but this one."""
    return [
        (f"worker {other} ({address})", address)
        for other, address in enumerate(addresses)
        if other != number
    ]


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[4:], int(sys.argv[3]))
