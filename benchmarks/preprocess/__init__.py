"""The preprocessing job against a bare pool and TensorFlow Datasets: speed, memory, resuming."""
