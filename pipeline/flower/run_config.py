"""Flower's run config as settings, how a run deals with sites, and which settings cannot travel."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.settings import RunConfig

FIELDS = {each.name: each for each in dataclasses.fields(RunConfig)}


class OfRun(NamedTuple):
    """What a run config has beside RunConfig's fields; defaults of pyproject.toml."""

    cache: str = ""  # on the server's machine: held-out rows to test on; in a simulation all rows
    out: str = ""  # the run folder; "": runs/<run_id> where the SuperLink was started
    force: bool = False  # train again where a folder holds a run
    sites: int = 2  # to wait for
    min_sites: int = 2  # that must answer each round; more than `sites` means all of them
    wait: float = 600.0  # seconds to wait for the sites
    timeout: float = 600.0  # seconds that a round may take
    device: str = "auto"  # of a simulation's nodes; else the node config says
    backend: str = "auto"

    @property
    def least(self) -> int:
        """Sites that must answer each round; fewer end the run."""
        return min(self.min_sites, self.sites)


DEFAULTS: dict[str, Any] = {
    **{name: each.default for name, each in FIELDS.items()},
    "held_out": "none",
    "method": "median",  # sites are not trusted: it holds as long as fewer than half of them lie
    **OfRun()._asdict(),
}
"""The table [tool.flwr.app.config]."""


def config_of(run_config: Mapping[str, Any]) -> RunConfig:
    """The settings of a run; what is not there has RunConfig's default.

    held_out is "none" or domains with commas between them. Raises ConfigError for invalid settings,
    and for names that are none.
    """
    if strange := [name for name in run_config if name not in DEFAULTS]:
        raise ConfigError(f"run config {strange[0]!r} is unknown; there is {', '.join(DEFAULTS)}")
    given = {name: value for name, value in run_config.items() if name in FIELDS}
    for name, value in given.items():
        if FIELDS[name].type is float and type(value) is int:
            given[name] = float(value)
    held_out = str(given.pop("held_out", "none"))
    names = () if held_out == "none" else tuple(dict.fromkeys(held_out.split(",")))
    return RunConfig(held_out=(names,), **given)


def terms_of(run_config: Mapping[str, Any]) -> OfRun:
    """The rest of a run config. Raises ConfigError for a value unlike its default."""
    found = OfRun()._asdict() | {n: v for n, v in run_config.items() if n in OfRun._fields}
    for name, value in found.items():
        default = getattr(OfRun(), name)
        if isinstance(default, float) and type(value) is int:
            found[name] = value = float(value)
        if type(value) is not type(default):
            raise ConfigError(f"{name} must be like {default!r}; got {value!r}")
        if type(value) in (int, float) and not value > 0:
            raise ConfigError(f"{name} must be above 0; got {value!r}")
    return OfRun(**found)


def refuse_what_cannot_travel(config: RunConfig) -> None:
    """Raises ConfigError naming the setting, and why it has no place beyond one machine."""
    at_home = "use ./run.sh federate at each site"
    if config.start == "closed-form" and config.payload != "fp32":
        raise ConfigError(
            f"start closed-form with payload {config.payload} cannot go to sites: each draws the "
            "first adapter by itself, and does not know that head; pass --payload fp32"
        )
    if why := METHODS[config.method].at_home:
        raise ConfigError(f"method {config.method} cannot go to sites: {why}")
    if config.personalise:
        raise ConfigError(f"personalise tunes adapters that stay at their clients; {at_home}")
    if len(config.held_out) != 1:
        raise ConfigError(
            f"{len(config.held_out)} trainings were asked for; sites do one at a time: name one "
            "--held-out, or none"
        )
