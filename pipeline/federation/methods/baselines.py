"""Baselines of federated methods: each client alone, all rows in one place, zero-shot CLIP."""

from pipeline.federation.methods.method import Method

_AT_HOME = "use ./run.sh federate at each site"

METHODS = (
    Method(
        "local",
        about="Baseline: each client trains alone.",
        lanes="alone",
        sends=(),
        at_home=f"nothing of it travels; {_AT_HOME}",
    ),
    Method(
        "central",
        about="Baseline: all rows are trained in one place.",
        lanes="pooled",
        sends=(),
        at_home="it trains on all sites' rows in one place, and rows do not leave a site",
    ),
    Method(
        "zero-shot",
        about="Baseline: CLIP without an adapter.",
        lanes="none",
        learns=False,
        sends=(),
        at_home=f"it trains nothing; {_AT_HOME}",
    ),
)
