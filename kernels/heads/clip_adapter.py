"""CLIP-Adapter: 0.2 relu(W2 relu(W1 x')) + 0.8 x', with a bottleneck; arXiv:2110.04544."""

from kernels.heads.head import Head

REDUCTION = 4  # the bottleneck is D / 4 wide
RATIO = 0.2  # weight of the new features; both: arXiv:2110.04544, section 4.1

HEAD = Head(
    "clip-adapter",
    about="CLIP-Adapter: a bottleneck, blended with the feature.",
    shapes=lambda d, classes, rank: {
        "w1": (max(1, d // REDUCTION), d),
        "w2": (d, max(1, d // REDUCTION)),
    },
    apply=lambda parts, x: (
        RATIO * x.bmm(parts["w1"].mT).relu().bmm(parts["w2"].mT).relu() + (1 - RATIO) * x
    ),
    last=("w2",),
    numba=1,
    refusals=(
        (
            lambda mode, start: start == "identity",
            "start identity: head clip-adapter ends in a ReLU, which passes no gradient at 0, so "
            "it would never train; pass --start default or --head low-rank",
        ),
    ),
)
