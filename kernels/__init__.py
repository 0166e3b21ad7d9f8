"""Kernels of stage two: a folder for each public function, a file for each backend."""
