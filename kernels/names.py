"""The words that name what kernels compute; read without importing torch; heads: kernels/heads/."""

MODES = ("FedAtImg", "FedAtTxt", "FedAtBoth")
"""Where adapters sit: on image features (released), on text features, on both."""
STARTS = ("default", "identity", "closed-form")
LOSSES = ("contrastive", "class", "multi-positive")
OPTIMIZERS = ("adam", "adamw", "sgd")
