"""Frozen CLIP: weights and images are read as data and give features. The only importer of clip."""
