"""The TensorFlow side: losses, batches, training, evaluation."""

import os

# TensorFlow reads this when it is first imported; 3 keeps its start-up notices off the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
