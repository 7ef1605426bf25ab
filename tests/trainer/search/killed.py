"""Adds to copies of an index, and kills the process at each of its file accesses in turn.

python -m tests.trainer.search.killed INDEX EMBEDDINGS COPIES

The n-th copy is left by a process that was killed at its n-th access to a file of the copy. The
last copy is left by a process that was not killed. Prints the number of killed processes.
"""

import os
import shutil
import signal
import sys

from trainer.search.build import add

ACCESS = ("open", "os.rename", "os.remove", "os.mkdir")


def die_at(access: int, folder: str) -> None:
    left = access

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in ACCESS and isinstance(arguments[0], str) and arguments[0].startswith(folder):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def main(index: str, embeddings: str, copies: str) -> None:
    for access in range(1000):
        copy = os.path.join(copies, str(access))
        shutil.copytree(index, copy)
        child = os.fork()
        if not child:
            die_at(access, copy)
            add(directory=copy, embeddings_dirs=[embeddings], threads=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            print(access)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
