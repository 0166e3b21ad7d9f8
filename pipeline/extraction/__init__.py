"""Stage one: images and prompts are encoded by frozen CLIP, once, into a cache."""
