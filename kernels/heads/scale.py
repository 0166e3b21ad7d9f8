"""A scale per channel: (1 + s) * x', starting from s = 0; (IA)^3's l * x with l = 1 + s.

(IA)^3 starts at l = 1. Written as 1 + s, weight decay pulls towards zero-shot instead of towards 0.
Source: arXiv:2205.05638.
"""

from kernels.heads.head import Head

HEAD = Head(
    "scale",
    about="One factor per channel of the feature.",
    shapes=lambda d, classes, rank: {"s": (d,)},
    apply=lambda parts, x: (1 + parts["s"][:, None]) * x,
    start=lambda part, start, drawn, text: drawn.zero_(),
)
