"""What to ask of a machine with a GPU in its first minutes: python -m benchmarks.gpu_check."""
