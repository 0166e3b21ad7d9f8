"""The built-in data: drawings in four domains; encoder/demo_clip.safetensors is its CLIP."""
