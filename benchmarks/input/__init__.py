"""Batches of P x K by offset, a bare read and peers: `python -m benchmarks.input`."""
