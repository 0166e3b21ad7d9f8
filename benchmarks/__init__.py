"""What the kernels and the two stages cost: checked first, then timed beside plain code."""
