"""Compiles a replica's training step for a TPU v5e on a machine without one: docs/tpu.md."""
