"""Names of modes, starts, losses and optimizers; imports no torch. Heads are in kernels/heads/."""

MODES = ("FedAtImg", "FedAtTxt", "FedAtBoth")
"""Where adapters sit: on image features (released), on text features, on both."""
STARTS = ("default", "identity", "closed-form")
LOSSES = ("contrastive", "class", "multi-positive")
OPTIMIZERS = ("adam", "adamw", "sgd")
