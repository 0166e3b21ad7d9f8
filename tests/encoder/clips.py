"""Small random CLIPs in OpenAI's layout, and writing them in every file format of weights."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.encoder.model import import_clip

RESOLUTION, WIDTH = 32, 24


def build(kind: str = "ViT", seed: int = 0) -> torch.nn.Module:
    """A clip.model.CLIP of a few thousand weights beside its 49,408 tokens, rounded as OpenAI's.

    kind  "ViT" or "RN"; an RN's BatchNorms have statistics of their own, so a change would show
    """
    clip = import_clip()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        image = ((1, 1, 1, 1), 16, None) if kind == "RN" else (2, 64, 16)
        module = clip.model.CLIP(WIDTH, RESOLUTION, *image, 77, 49408, 64, 1, 2)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
                layer.weight.data.uniform_(0.5, 1.5)
    clip.model.convert_weights(module)
    return module.eval()


def save(module: torch.nn.Module, path: Path, form: str) -> Path:
    """Write the module's weights as "state dict", "wrapped", "safetensors" or "TorchScript"."""
    state = module.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "TorchScript":
        _save_archive(module, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if form == "wrapped" else state, path)
    return path


def _save_archive(module: torch.nn.Module, path: Path) -> None:
    """A TorchScript archive as OpenAI's: traced, and with three numbers beside the weights."""

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in module.named_children():
                self.add_module(name, child)
            for name, parameter in module.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
            for name, number in (
                ("input_resolution", module.visual.input_resolution),
                ("context_length", module.context_length),
                ("vocab_size", module.vocab_size),
            ):
                self.register_buffer(name, torch.tensor(number))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.token_embedding(tokens) + self.input_resolution

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.trace(Archive(), torch.zeros(1, 77, dtype=torch.long)).save(str(path))
