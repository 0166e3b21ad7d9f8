"""Which settings can go to sites, and why others cannot."""

from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.settings import RunConfig


def refuse_what_cannot_travel(config: RunConfig) -> None:
    """Raises ConfigError naming the setting, and why it has no place beyond one machine."""
    at_home = "use ./run.sh federate at each site"
    if config.start == "closed-form":
        raise ConfigError(
            "start closed-form cannot go to sites: Flower's rounds carry adapters, not sums; pass "
            "--start default or identity, or --preset cosine in place of tuned"
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
