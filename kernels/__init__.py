"""Kernels of stage two: one public function a file, one file a backend."""
