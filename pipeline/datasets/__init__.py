"""Folders and archives of images to rows: path, label, domain, split; independent of CLIP."""
