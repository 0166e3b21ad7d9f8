"""The built-in data: four domains of drawings, and the small CLIP that was trained on others."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("clip_demo.safetensors")
