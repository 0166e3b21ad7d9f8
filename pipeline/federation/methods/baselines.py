"""What federated methods are held against: each client alone, all rows in one place, CLIP alone."""

from pipeline.federation.methods.method import Method

_AT_HOME = "use ./run.sh federate at each site"

METHODS = (
    Method("local", lanes="alone", sends=(), at_home=f"nothing of it travels; {_AT_HOME}"),
    Method(
        "central",
        lanes="pooled",
        sends=(),
        at_home="it trains on all sites' rows in one place, and rows do not leave a site",
    ),
    Method(
        "zero-shot",
        lanes="none",
        learns=False,
        sends=(),
        at_home=f"it trains nothing; {_AT_HOME}",
    ),
)
