"""Processes that start with TensorFlow imported: forks of a server process that does nothing else.

Each fork behaves like a new process, because TensorFlow makes its devices and threads at its first
operation. This saves five of the fifteen seconds of a small training run, and nearly all the time
of a mistake of the user. Tests of a command's very start and very end must use `subprocess`.
"""

import atexit
import functools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]


def run(
    arguments: Sequence[str], env: Mapping[str, str], *, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Runs Python like `subprocess.run`, in the project's folder; -m or -c comes first.

    Raises:
      subprocess.TimeoutExpired: the process took longer and was killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        server = _server()
        files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
        call = {"arguments": [*arguments], "env": dict(env), "files": files}
        server.stdin.write(f"{json.dumps(call)}\n".encode())
        child = int(server.stdout.readline())
        late = not select.select([server.stdout], [], [], timeout)[0]
        if late:
            os.kill(child, signal.SIGKILL)
        code = int(server.stdout.readline())
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    if late:
        raise subprocess.TimeoutExpired([*arguments], timeout, *texts)
    return subprocess.CompletedProcess([*arguments], code, *texts)


@functools.cache
def _server() -> subprocess.Popen:
    """The server process. It starts on the first use and ends when its input ends."""
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that reading one line takes nothing more from the stream
    )

    def end() -> None:
        server.stdin.close()
        server.stdout.close()
        server.wait()

    atexit.register(end)
    return server


def serve() -> None:
    """Forks for each line of input; prints the process's number, and later how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from trainer import startup

    startup.import_tensorflow()
    from trainer import config, export, train, workers  # noqa: F401  (and all that these import)

    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(arguments: list[str], env: dict[str, str], files: list[str]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    for path, number in zip((os.devnull, *files), range(3), strict=True):
        file = os.open(path, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    kind, what, *rest = arguments
    code: object = None
    try:
        sys.argv = ["-c" if kind == "-c" else what, *rest]
        if kind == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
