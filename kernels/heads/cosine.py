"""A cosine classifier: a weight vector per class, initially the text feature it replaces."""

from kernels.heads.head import Head

HEAD = Head(
    "cosine",
    about="A weight vector per class in place of text features (FedAtTxt only).",
    shapes=lambda d, classes, rank: {"w": (classes, d)},
    apply=None,
    start=lambda part, start, drawn, text: drawn.copy_(text),
    numba=4,
    refusals=(
        (
            lambda mode, start: mode != "FedAtTxt",
            "head cosine replaces the text features: pass --mode FedAtTxt",
        ),
    ),
)
