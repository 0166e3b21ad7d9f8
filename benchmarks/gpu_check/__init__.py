"""Checks for the first minutes on a machine with a GPU: python -m benchmarks.gpu_check."""
