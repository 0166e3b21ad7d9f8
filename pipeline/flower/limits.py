"""Which settings can go to sites, and why others cannot."""

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig


def refuse_what_cannot_travel(config: RunConfig) -> None:
    """Raises ConfigError naming the setting, and why it has no place beyond one machine."""
    at_home = "use ./run.sh federate at each site"
    own = "of its own, by which rounds are chosen and which a run's file holds; only what is common"
    reasons = {
        "local": f"nothing of it travels; {at_home}",
        "zero-shot": f"it trains nothing; {at_home}",
        "central": "it trains on all sites' rows in one place, and rows do not leave a site",
        "ditto": f"each client keeps an adapter {own} travels",
        "fedper": f"each client keeps a layer {own} travels",
    }
    if "closed-form" in (config.method, config.start):
        raise ConfigError(
            "closed-form heads cannot go to sites yet: Flower's rounds carry adapters, not sums; "
            "run it with ./run.sh federate on a merged cache, or pass another --method or --start"
        )
    if config.method in reasons:
        raise ConfigError(f"method {config.method} cannot go to sites: {reasons[config.method]}")
    if config.choose == "loss":
        raise ConfigError(
            "choose loss cannot go to sites: they send how many rows were answered right, no "
            "losses; pass --choose accuracy or --choose last"
        )
    if config.personalise:
        raise ConfigError(f"personalise tunes adapters that stay at their clients; {at_home}")
    if len(config.held_out) != 1:
        raise ConfigError(
            f"{len(config.held_out)} trainings were asked for; sites do one at a time: name one "
            "--held-out, or none"
        )
