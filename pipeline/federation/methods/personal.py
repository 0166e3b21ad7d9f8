"""Methods in which a client keeps something of its own: Ditto an adapter, FedPer a layer."""

from kernels.heads import HEADS
from pipeline.federation.methods.method import Method

_OWN = "of its own, by which rounds are chosen and which a run's file holds; only what is common"
*_OTHERS, _LAST = (name for name, head in HEADS.items() if not head.last)

METHODS = (
    # Source: arXiv:2012.04221. Each client also trains a second adapter, with a proximal term
    # towards the server's.
    Method(
        "ditto",
        about="FedAvg, and a personal adapter at each client.",
        keeps="adapter",
        proximal=True,
        settings={"mu": {}},
        at_home=f"each client keeps an adapter {_OWN} travels",
    ),
    # Source: arXiv:1912.00818.
    Method(
        "fedper",
        about="FedAvg, except that each client keeps its head's last layer.",
        keeps="layer",
        refusals=(
            (
                lambda c: not HEADS[c.head].last,
                "method fedper keeps the head's last layer at the client; "
                f"{', '.join(_OTHERS)} and {_LAST} have one layer only, so nothing would be "
                "shared. Pass --head low-rank or --method local",
            ),
        ),
        at_home=f"each client keeps a layer {_OWN} travels",
    ),
)
