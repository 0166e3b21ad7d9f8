"""What the Triton kernels share, and a round as one CUDA graph."""
