"""Sweeps and extraction on a Ray cluster; the only importer of ray."""
