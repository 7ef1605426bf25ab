"""A worker that joins the others and exits when it calls a given function, for test_workers.py.

python -m tests.trainer.leaves MODULE.NAME FLAGS

MODULE.NAME is the function, and FLAGS are those of trainer.main.
"""

import os
import sys
from unittest import mock

from preprocessing import commandline
from trainer import main


def leave(*_: object) -> None:
    os._exit(0)


if __name__ == "__main__":
    with mock.patch(sys.argv.pop(1), leave):
        commandline.run(main.main, description=__doc__)
