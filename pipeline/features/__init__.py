"""Features that people already have, in the files of other tools: in and out of caches."""
