"""Before TensorFlow starts: none of its notices. Processes of the tests can be interrupted."""

import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A shell's background jobs ignore Ctrl+C, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
