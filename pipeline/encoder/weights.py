"""The name or the file of a CLIP -> its state dict, and what to say when it is neither."""

import difflib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from pipeline.encoder.hub import HUB_PREFIXES, repository_of
from pipeline.encoder.shards import INDEX, read_shards
from pipeline.encoder.state_layouts import Converted, as_openais
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
WEIGHT_FILES = (  # of Hugging Face's hub, in the order in which a folder is searched
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_pytorch_model.bin",
)
NEEDED = ("visual.conv1.weight", "text_projection", "token_embedding.weight", "logit_scale")
NOT_WEIGHTS = (  # how other files begin, and what to say of them
    (b"<", "an HTML or XML page, not weights; was a web page saved instead of the file?"),
    (
        b"version https://git-lfs",
        "a git-LFS pointer, not the file itself; `git lfs pull` fetches it",
    ),
    (b"\x89HDF", "an HDF5 file, not CLIP weights"),
)


def find_weights(name_or_file: str) -> tuple[str, Path | None]:
    """The model's name and its file; None where it is downloaded: OpenAI's nine, hf:, open_clip:.

    Names are taken in any case and before files. A folder is the first of WEIGHT_FILES in it.
    Raises WeightsError when it is neither.
    """
    known = {name.lower(): name for name in MODEL_NAMES}
    name = known.get(name_or_file.lower())
    if name:
        return name, WEIGHTS if name == "demo" else None
    if name_or_file.startswith(HUB_PREFIXES):
        repository_of(name_or_file)  # refuses a bad one
        return name_or_file, None
    path = Path(name_or_file).expanduser()
    if path.is_dir():
        return path.resolve().name, _in_folder(path)
    if path.exists():
        return path.name, path
    if path.suffix.lower() in WEIGHT_SUFFIXES:
        raise WeightsError(f"--model {name_or_file}: there is no such file")
    near = difflib.get_close_matches(name_or_file.lower(), known, n=1)
    hint = f" Did you mean {known[near[0]]}?" if near else ""
    raise WeightsError(
        f"--model {name_or_file}: no such file, and no model of that name; there are "
        f"{', '.join(MODEL_NAMES)}, and {' and '.join(HUB_PREFIXES)} for the Hugging Face hub."
        f"{hint}"
    )


def _in_folder(folder: Path) -> Path:
    """The weights in a folder as Hugging Face's hub and its clients lay it out."""
    there = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if there:
        return there[0]
    raise WeightsError(
        f"--model {folder}: a folder, where one of {', '.join(WEIGHT_FILES)} is looked for, and "
        "it has none; name a file of weights"
    )


def read_state_dict(path: Path) -> Converted:
    """The tensors in `path` by OpenAI's names, on the CPU, in the dtypes they were stored in.

    The content decides how it is read: OpenAI's TorchScript archive, a state dict by torch.save
    (plain, or as the value of "state_dict", "model" and their like), or safetensors; and whose
    layout it is, see as_openais. None of their code is run, see tensor_files. Of an index of shards
    all of them are read.
    Raises WeightsError for any other file and for one without CLIP's tensors.
    """
    if path.name.endswith(INDEX):
        return _clip_tensors(path, read_shards(path, _read_file))
    return _clip_tensors(path, _read_file(path))


def _read_file(path: Path) -> object:
    if not path.is_file():  # opening a pipe would wait for its other end
        raise WeightsError(f"{path}: is not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind, read = _kind_of(path, start)
    try:
        return read(path)
    except UnsafePickle as error:
        raise WeightsError(f"{path} {error}") from error
    except Exception as error:  # zipfile raises nearly anything for a damaged file
        raise WeightsError(f"{path}: {_what_went_wrong(path, kind, error)}") from error


def _kind_of(path: Path, start: bytes) -> tuple[str, Callable[[Path], object]]:
    """The kind of a file in words, and what reads it. WeightsError for a kind that is not known."""
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes); download or copy it again")
    for beginning, what in NOT_WEIGHTS:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            raise WeightsError(f"{path} is {what}")
    if start.startswith(b"PK\x03\x04"):
        return "torch", read_zip
    if start[8:9] == b"{":  # after the header's length in 8 bytes
        return "safetensors", safetensors.torch.load_file
    if start.startswith(b"\x80"):  # a pickle of protocol 2 or later
        return "torch", read_stream
    raise WeightsError(
        f"{path} is not a file of weights: it begins with {start[:12]!r}; "
        "a TorchScript archive, a state dict by torch.save, or safetensors is needed"
    )


def _what_went_wrong(path: Path, kind: str, error: Exception) -> str:
    size = f"{path.stat().st_size:,} bytes"
    if isinstance(error, zipfile.BadZipFile):
        return f"a damaged or incomplete archive ({size}); download or copy it again"
    known = (SafetensorError, DamagedFile, json.JSONDecodeError, RuntimeError, EOFError)
    name = "" if isinstance(error, known) else f"{type(error).__name__}: "
    reason = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
    return f"cannot be read as a {kind} file ({size}): {name}{reason}; download or copy it again"


def _clip_tensors(path: Path, found: object) -> Converted:
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict of tensors")
    if len(found) > MOST_TENSORS:
        raise WeightsError(f"{path} holds {len(found):,} tensors; a CLIP has a thousand")
    names = ", ".join(str(name)[:80] for name in list(found)[:3])
    other = [n for n, one in found.items() if not (isinstance(n, str) and torch.is_tensor(one))]
    if other:
        raise WeightsError(
            f"{path} is not the state dict of a CLIP: it has {str(other[0])[:80]!r}, which is not "
            f"a tensor with a name; it begins with {names}"
        )
    converted = as_openais(found, path)
    missing = [name for name in NEEDED if name not in converted.state]
    if missing:
        raise WeightsError(
            f"{path} is not a CLIP in a layout of OpenAI, Hugging Face or open_clip: it lacks "
            f"{missing[0]}; it begins with {names}"
        )
    return converted
