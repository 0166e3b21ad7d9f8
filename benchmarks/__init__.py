"""Cost of the kernels and the two stages: checked first, then timed against plain code."""
