"""Stage two: a run on disk, from a cache to its results, and what its adapters answer."""
