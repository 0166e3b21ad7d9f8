"""Frozen CLIP: weights and images as data, features out. The only importer of clip."""
