"""The name or the file of a CLIP -> its state dict, and what to say when it is neither."""

import difflib
import json
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from pipeline.encoder.tensor_files import MOST_TENSORS, read_stream, read_zip
from pipeline.encoder.tensor_pickle import DamagedFile, UnsafePickle
from pipeline.errors import WeightsError

# As clip.available_models() lists them, so that they are known before clip is imported.
OPENAI_NAMES = (
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
    *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
)
MODEL_NAMES = (*OPENAI_NAMES, "demo")
WEIGHTS = Path(__file__).with_name("demo_clip.safetensors")  # made by extraction/demo_clip.py
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
NEEDED = ("visual.conv1.weight", "text_projection", "token_embedding.weight", "logit_scale")
OTHER_LAYOUTS = (  # how a name in them begins, and what they are
    ("logit_bias", "a SigLIP, not a CLIP"),
    ("vision_model.", "in Hugging Face's layout, not in OpenAI's"),
    ("text_model.", "in Hugging Face's layout, not in OpenAI's"),
    ("visual.trunk.", "an open_clip model with an image tower of timm's, not a CLIP of OpenAI's"),
    ("visual.attn_pool.", "an open_clip model that pools by attention, not a CLIP of OpenAI's"),
    ("text.", "in open_clip's layout with a text tower of its own, not in OpenAI's"),
    ("module.", "the state dict of a DataParallel, not of the model in it"),
)
IN_LAYOUT = "weights named as in OpenAI's clip package (visual.conv1.weight, ...) are needed"
NOT_WEIGHTS = (  # how other files begin, and what to say of them
    (b"<", "an HTML or XML page, not weights; was a web page saved instead of the file?"),
    (
        b"version https://git-lfs",
        "a git-LFS pointer, not the file itself; `git lfs pull` fetches it",
    ),
    (b"\x89HDF", "an HDF5 file, not CLIP weights"),
)


def find_weights(name_or_file: str) -> tuple[str, Path | None]:
    """The model's name and its file; None for the file of OpenAI's nine, which clip downloads.

    Names are taken in any case and before files. Raises WeightsError when it is neither.
    """
    known = {name.lower(): name for name in MODEL_NAMES}
    name = known.get(name_or_file.lower())
    if name:
        return name, WEIGHTS if name == "demo" else None
    path = Path(name_or_file).expanduser()
    if path.is_dir():
        raise WeightsError(f"--model {name_or_file}: a folder; name the file of weights in it")
    if path.exists():
        return path.name, path
    if path.suffix.lower() in WEIGHT_SUFFIXES:
        raise WeightsError(f"--model {name_or_file}: there is no such file")
    near = difflib.get_close_matches(name_or_file.lower(), known, n=1)
    hint = f" Did you mean {known[near[0]]}?" if near else ""
    raise WeightsError(
        f"--model {name_or_file}: no such file, and no model of that name; there are "
        f"{', '.join(MODEL_NAMES)}.{hint}"
    )


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in `path` by name, on the CPU, in the dtypes they were stored in.

    The content decides how it is read: OpenAI's TorchScript archive, a state dict by torch.save
    (plain, or as the value of "state_dict"), or safetensors. None of their code is run, see
    tensor_files.
    Raises WeightsError for any other file and for one without CLIP's tensors.
    """
    if not path.is_file():  # opening a pipe would wait for its other end
        raise WeightsError(f"{path}: is not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    _refuse_strangers(path, start)
    try:
        found = _read(path, start)
    except UnsafePickle as error:
        raise WeightsError(f"{path} {error}") from error
    except Exception as error:  # zipfile raises nearly anything for a damaged file
        raise WeightsError(f"{path}: {_what_went_wrong(path, start, error)}") from error
    return _clip_tensors(path, found)


def _read(path: Path, start: bytes) -> object:
    if start.startswith(b"PK\x03\x04"):
        return read_zip(path)
    if _is_safetensors(start):
        return safetensors.torch.load_file(path)
    return read_stream(path)


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"  # after the header's length in 8 bytes


def _refuse_strangers(path: Path, start: bytes) -> None:
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes); download or copy it again")
    for beginning, what in NOT_WEIGHTS:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            raise WeightsError(f"{path} is {what}")
    # A zip, a pickle of protocol 2 or later, or safetensors.
    if not (start.startswith((b"PK\x03\x04", b"\x80")) or _is_safetensors(start)):
        raise WeightsError(
            f"{path} is not a file of weights: it begins with {start[:12]!r}; "
            "a TorchScript archive, a state dict by torch.save, or safetensors is needed"
        )


def _what_went_wrong(path: Path, start: bytes, error: Exception) -> str:
    size = f"{path.stat().st_size:,} bytes"
    if isinstance(error, zipfile.BadZipFile):
        return f"a damaged or incomplete archive ({size}); download or copy it again"
    kind = "safetensors" if _is_safetensors(start) else "torch"
    known = (SafetensorError, DamagedFile, json.JSONDecodeError, RuntimeError, EOFError)
    name = "" if isinstance(error, known) else f"{type(error).__name__}: "
    reason = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
    return f"cannot be read as a {kind} file ({size}): {name}{reason}; download or copy it again"


def _clip_tensors(path: Path, found: object) -> dict[str, torch.Tensor]:
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict of tensors")
    if len(found) > MOST_TENSORS:
        raise WeightsError(f"{path} holds {len(found):,} tensors; a CLIP has a thousand")
    for beginning, layout in OTHER_LAYOUTS:
        first = next((name for name in found if str(name).startswith(beginning)), None)
        if first is not None:
            raise WeightsError(f"{path} is {layout}: it has {str(first)[:80]}; {IN_LAYOUT}")
    other = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    missing = [name for name in NEEDED if name not in found]
    if missing or other:
        lack = (
            f"lacks {missing[0]}"
            if missing
            else f"has {str(other[0])[:80]!r}, which is not a tensor"
        )
        names = ", ".join(str(name)[:80] for name in list(found)[:3])
        raise WeightsError(
            f"{path} is not a CLIP in OpenAI's layout: it {lack}; it begins with {names}"
        )
    return found
