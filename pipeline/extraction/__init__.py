"""Stage one: images and prompts through frozen CLIP, once, into a cache."""
