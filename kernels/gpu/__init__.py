"""Code shared by the Triton kernels, and a federated round captured as one CUDA graph."""
