"""Code shared by the numba kernels: tiles, elementary functions, threads, compilation cache."""
