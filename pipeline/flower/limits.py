"""Which settings can go to sites, and why others cannot."""

from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.settings import RunConfig


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
