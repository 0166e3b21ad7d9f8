"""What the numba kernels share: tiles, elementary functions, threads, where code is kept."""
