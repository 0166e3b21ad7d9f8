"""Weights that Hugging Face's tools cut into several files, by the index that lists them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, WeightsError
from pipeline.files import read_plain

INDEX = ".index.json"
SUFFIXES = (".safetensors", ".bin")
MOST_BYTES = 4 << 20  # of an index: a thousand names take 100 kB
MOST_SHARDS = 1000


def names_in(index: Path) -> dict[str, list[str]]:
    """The tensors' names in each shard, {file beside the index: names}.

    Source: transformers, `save_pretrained(max_shard_size=...)`: {"weight_map": {tensor: file}}.
    Raises WeightsError for another content, and for a file that does not lie beside the index.
    """
    try:
        found = json.loads(read_plain(index, MOST_BYTES))["weight_map"].items()
        shards: dict[str, list[str]] = {}
        for name, file in found:
            shards.setdefault(_sound(index, file), []).append(name)
    except ConfigError as error:
        raise WeightsError(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{index}: is not an index of weights, a JSON object with weight_map; download it again"
        ) from error
    if not 0 < len(shards) <= MOST_SHARDS:
        raise WeightsError(f"{index}: lists {len(shards):,} files; 1 to {MOST_SHARDS:,} are read")
    return shards


def read_shards(index: Path, read: Callable[[Path], object]) -> dict[str, Any]:
    """The tensors of all shards by name; read: one file's.

    Raises WeightsError for a shard that is missing, and for a tensor that is not in its shard.
    """
    found: dict[str, Any] = {}
    for file, names in names_in(index).items():
        shard = index.with_name(file)
        if not shard.exists():
            raise WeightsError(
                f"{shard}: is missing, and {index.name} lists {len(names)} tensors in it; download "
                "all files of the weights into one folder"
            )
        held = read(shard)
        tensors = held if isinstance(held, dict) else {}
        lacking = [name for name in names if name not in tensors]
        if lacking:
            raise WeightsError(
                f"{shard}: lacks {lacking[0][:80]}, which {index.name} lists in it; download both "
                "again"
            )
        found |= {name: tensors[name] for name in names}
    return found


def _sound(index: Path, file: object) -> str:
    named = isinstance(file, str) and file.isprintable() and file.endswith(SUFFIXES)
    if not named or Path(str(file)).name != file or "\\" in str(file):
        raise WeightsError(
            f"{index}: lists {str(file)[:80]!a}, where the name of a file beside it is expected, "
            f"ending in {' or '.join(SUFFIXES)}"
        )
    return str(file)
