"""A low-rank residual: x' + B A x', starting from B = 0; arXiv:2106.09685."""

from kernels.heads.head import Head

HEAD = Head(
    "low-rank",
    about="The feature plus a low-rank linear map of it (LoRA).",
    shapes=lambda d, classes, rank: {"a": (rank, d), "b": (d, rank)},
    apply=lambda parts, x: x + x.bmm(parts["a"].mT).bmm(parts["b"].mT),
    start=lambda part, start, drawn, text: drawn.zero_() if part == "b" else drawn,
    last=("b",),
    uses_rank=True,
    numba=3,
)
