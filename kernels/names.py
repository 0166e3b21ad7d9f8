"""The words that name what kernels compute; read without importing torch."""

MODES = ("FedAtImg", "FedAtTxt", "FedAtBoth")
"""Where adapters sit: on image features (released), on text features, on both."""
HEADS = ("attention", "clip-adapter", "linear", "low-rank", "cosine", "classifier")
STARTS = ("default", "identity", "closed-form")
LOSSES = ("contrastive", "class", "multi-positive")
OPTIMIZERS = ("adam", "adamw", "sgd")
