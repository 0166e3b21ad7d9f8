"""Which settings play a part in a run, and a sentence for each one that was set in vain."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernels.heads import HEADS
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.method import Above, Way
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from cache.table import FeatureTable

FIELDS = {each.name: each for each in dataclasses.fields(RunConfig)}
TRAINED = tuple(name for name, method in METHODS.items() if method.trains)
"""Methods that train adapters in rounds."""


def _ways_of_methods() -> dict[str, tuple[Way, ...]]:
    """Each setting's uses in methods; methods that use it under equal conditions share a way."""
    found: dict[str, list[tuple[Way, list[str]]]] = {}
    for method in METHODS.values():
        for name, conditions in method.uses.items():
            ways = found.setdefault(name, [])
            names = next((names for way, names in ways if way == conditions), None)
            if names is None:
                ways.append((conditions, names := []))
            names.append(method.name)
    return {
        name: tuple({"method": tuple(names), **conditions} for conditions, names in ways)
        for name, ways in found.items()
    }


_OF_METHODS = _ways_of_methods()
_ADAM: Way = {"method": TRAINED, "optimizer": ("adam", "adamw")}
USED_BY: dict[str, tuple[Way, ...]] = {
    **{
        name: ()
        for name in ("held_out", "method", "seed", "split", "fixed_split", "partition", "clients")
    },
    **_OF_METHODS,
    **{
        name: (*_OF_METHODS[name], {"method": TRAINED, "start": ("closed-form",)})
        for name in ("solver", "tune_on", "shape", "strength")
    },
    "refit": (*_OF_METHODS["refit"], {"method": TRAINED, "choose": ("last",)}),
    "start": (
        {
            "method": TRAINED,
            "head": tuple(n for n, h in HEADS.items() if h.identity or h.closed_form),
        },
    ),
    "rank": ({"method": TRAINED, "head": tuple(n for n, h in HEADS.items() if h.uses_rank)},),
    "beta1": (_ADAM,),
    "beta2": (_ADAM,),
    "eps": (_ADAM,),
    "momentum": ({"method": TRAINED, "optimizer": ("sgd",)},),
    "moments": (_ADAM, {"method": TRAINED, "optimizer": ("sgd",), "momentum": Above(0)}),
    "alpha": ({"partition": ("dirichlet", "quantity"), "clients": Above(1)},),
    "classes_per_client": ({"partition": ("pathological",)},),
}
"""By setting, the ways in which it plays a part in a run: conditions on other settings, all of
which must hold; (): always. A setting that is not listed needs a method that trains (`ways_of`)."""


def ways_of(name: str) -> tuple[Way, ...]:
    """The ways in which a setting plays a part; see USED_BY."""
    return USED_BY.get(name, ({"method": TRAINED},))


def possible(config: RunConfig, swept: Mapping[str, Sequence[Any]] | None = None) -> dict[str, Any]:
    """All values of each setting: the config's one, or those that a sweep tries."""
    alone = {name: (getattr(config, name),) for name in FIELDS}
    return {**alone, **{name: tuple(values) for name, values in (swept or {}).items()}}


def unused(values: Mapping[str, Sequence[Any]], table: "FeatureTable | None" = None) -> list[str]:
    """A sentence for each setting that differs from its default and has no effect.

    values  as `possible` gives them: a setting is reported if it plays no part in any trial
    table   its own split may leave `split` without effect; None: unknown
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


def _failing(way: Way, values: Mapping[str, Sequence[Any]]) -> str | None:
    """The first condition of a way that no value meets; None if all can be met."""
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
