"""The built-in data: four domains of drawings; encoder/demo_clip.safetensors is its CLIP."""
