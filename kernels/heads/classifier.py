"""A linear classifier with bias: logits s (<x', w_c> + b_c), zero-shot or closed-form start."""

from kernels.heads.head import Head

HEAD = Head(
    "classifier",
    about="A linear classifier with bias in place of text features (FedAtTxt only).",
    shapes=lambda d, classes, rank: {"w": (classes, d), "b": (classes,)},
    apply=None,
    start=lambda part, start, drawn, text: drawn.copy_(text) if part == "w" else drawn.zero_(),
    closed_form=True,
    refusals=(
        (
            lambda mode, start: mode != "FedAtTxt",
            "head classifier replaces the text features: pass --mode FedAtTxt",
        ),
    ),
)
