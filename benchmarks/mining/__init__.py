"""Triplet losses against one matmul and against their peers: `python -m benchmarks.mining`."""
