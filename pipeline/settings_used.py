"""Which named settings play no part in a run: one line each, by the table `config.USED_BY`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cache.table import FeatureTable
from kernels.heads import HEADS
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.method import Above, Way
from pipeline.settings import TRAINED, RunConfig, ways_of

FIELDS = {each.name: each for each in dataclasses.fields(RunConfig)}
SAMPLE = 256  # rows of which a table's length is told
RAW = 10  # about how long ViT-B/32's raw features are


def possible(config: RunConfig, swept: Mapping[str, Sequence[Any]] | None = None) -> dict[str, Any]:
    """Every value that each setting may have: the config's one, or those that a sweep tries."""
    alone = {name: (getattr(config, name),) for name in FIELDS}
    return {**alone, **{name: tuple(values) for name, values in (swept or {}).items()}}


def unused(values: Mapping[str, Sequence[Any]], table: FeatureTable | None = None) -> list[str]:
    """Of each setting that differs from its default and has no effect, a sentence that says so.

    values  as `possible` gives them: a setting is told where it plays no part in any trial
    table   whose own split may leave `split` without effect; None: nothing is known of it
    """
    found = []
    for name, each in FIELDS.items():
        if all(value == each.default for value in values[name]):
            continue
        ways = ways_of(name)
        failing = [_failing(way, values) for way in ways]
        if ways and all(failing):
            found.append(_sentence(name, ways, failing, values))
    kept = table is not None and table.split is not None
    if kept and set(values["fixed_split"]) == {"keep"} and set(values["split"]) != {0.6}:
        found.append("split has no effect: the cache fixes its own; used by fixed_split holdout")
    return found


def plays_part(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting has an effect in a run of these settings."""
    ways, values = ways_of(name), {each: (value,) for each, value in settings.items()}
    return not ways or any(_failing(way, values) is None for way in ways)


def length_warning(table: FeatureTable, config: RunConfig) -> str | None:
    """What to say where the attention head trains on image features of length 1; else None.

    It alone reads how long a feature is (docs/methods.md): W1 x grows with |x|, and the released
    adapter was designed for raw features. Measured on up to SAMPLE rows, spread over the table.
    """
    if not HEADS[config.head].raw or config.mode == "FedAtTxt" or not METHODS[config.method].trains:
        return None
    if not len(table.features):
        return None
    some = np.unique(np.linspace(0, len(table.features) - 1, SAMPLE).astype(np.int64))
    lengths = np.linalg.norm(np.asarray(table.features[some], np.float64), axis=1)
    if not np.allclose(lengths, 1, atol=0.01):  # float16 rounds a length by up to 0.0005
        return None
    return (
        "features have length 1; the released adapter was designed for CLIP's raw features "
        f"(length about {RAW} for ViT-B/32); results differ: import with --feature-scale"
    )


def _failing(way: Way, values: Mapping[str, Sequence[Any]]) -> str | None:
    """The first condition of a way to be used that no value meets; None where all can be met."""
    for name, wanted in way.items():
        if not any(_meets(value, wanted) for value in values[name]):
            return name
    return None


def _meets(value: Any, wanted: Any) -> bool:
    return value > wanted.low if isinstance(wanted, Above) else value in wanted


def _sentence(
    name: str, ways: Sequence[Way], failing: Sequence[str | None],
    values: Mapping[str, Sequence[Any]],
) -> str:  # fmt: skip
    at = dict.fromkeys(each for each in failing if each)
    here = ", ".join(f"{n} {', '.join(map(str, dict.fromkeys(values[n])))}" for n in at)
    used = []
    for way, lacks in zip(ways, failing, strict=True):
        bare = _words(way[lacks]) if lacks else ""
        others = [f"{n} {_words(w)}" for n, w in way.items() if n != lacks and len(ways) > 1
                  and w != TRAINED]  # fmt: skip
        label = "" if len(at) == 1 else f"{lacks} "
        used.append(" with ".join([f"{label}{bare}", *others]))
    return f"{name} has no effect with {here}; used by {', or '.join(used)}"


def _words(wanted: Any) -> str:
    if isinstance(wanted, Above):
        return f"above {wanted.low:g}"
    return "methods that train" if wanted == TRAINED else ", ".join(wanted)
