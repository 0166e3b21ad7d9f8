"""How `--help` arranges the settings of a run: sections, and what each choice means."""

import dataclasses
from typing import Any

from kernels.heads import HEADS
from pipeline.federation.methods import METHODS
from pipeline.settings import RunConfig, ways_of

SECTIONS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("Preset and seed", None, ("seed",)),
    ("What is held out", None, ("split", "fixed_split")),
    ("Adapter", "head", ("mode", "head", "start", "rank")),
    (
        "Local training", "optimizer",
        ("local_epochs", "batch", "loss", "lr", "schedule", "weight_decay", "optimizer", "moments",
         "beta1", "beta2", "eps", "momentum"),
    ),
    (
        "Federated method", "method",
        ("method", "rounds", "weighting", "choose", "eval", "client_fraction", "dropout",
         "stragglers", "payload", "personalise", "mu", "server_lr", "server_momentum",
         "server_beta1", "server_beta2", "tau", "trim", "byzantine", "keep",
         "solver", "tune_on", "shape", "strength", "refit"),
    ),
    (
        "Partition into clients", "partition",
        ("partition", "clients", "shots", "alpha", "classes_per_client"),
    ),
    ("Privacy", None, ("clip", "noise")),
)  # fmt: skip
"""Title, the setting whose choices have settings of their own, and the settings in their order."""
OTHERS = "Other settings"
FEW = 5  # choices of one heading: what more of them use stands without one

MEANINGS: dict[str, dict[str, str]] = {
    "preset": {
        "released": "The released FedCLIP code's settings.",
        "tuned": "Ten rounds from the closed-form classifier (docs/findings.md).",
        "cosine": "A text classifier trained with momentum on the server (docs/findings.md).",
    },
    "fixed_split": {
        "keep": "Use it as it is.",
        "holdout": "Validate on held-out train rows and test on all other rows.",
    },
    "mode": {
        "FedAtImg": "On the image features.",
        "FedAtTxt": "On the text features.",
        "FedAtBoth": "One adapter on each.",
    },
    "head": {name: head.about for name, head in HEADS.items()},
    "start": {
        "default": "PyTorch's random initialization.",
        "identity": "Training starts exactly at zero-shot CLIP.",
        "closed-form": "At the head that method closed-form finds (head classifier).",
    },
    "loss": {
        "contrastive": "CLIP's loss over the batch, as released.",
        "class": "Cross-entropy over all classes.",
        "multi-positive": "Contrastive, with all rows of one class as positives.",
    },
    "optimizer": {
        "adam": "Adam; weight decay is added to the gradient.",
        "adamw": "AdamW; weight decay is decoupled from the gradient.",
        "sgd": "SGD with momentum.",
    },
    "moments": {
        "reset": "Every round starts with a fresh optimizer.",
        "kept": "Each client keeps its moments and step count.",
    },
    "schedule": {
        "constant": "The same rate in every round.",
        "cosine": "Decays to 0 along half a cosine.",
    },
    "method": {name: method.about for name, method in METHODS.items()},
    "weighting": {
        "uniform": "All clients count the same.",
        "rows": "Clients count by their number of train rows.",
    },
    "choose": {
        "accuracy": "The best mean validation accuracy.",
        "loss": "The lowest mean validation loss.",
        "last": "The last round, without looking at validation rows.",
    },
    "eval": {
        "last": "Once, with the kept adapter, after the last round.",
        "best": "Only in rounds that are kept so far.",
        "every": "In every round, and train rows too.",
    },
    "payload": {
        "fp32": "Single precision.",
        "fp16": "Half precision.",
        "int8": "8-bit integers with one scale for 512 numbers.",
    },
    "solver": {
        "auto": "gda or ridge, whichever does better on the rows that choose.",
        "gda": "Gaussian discriminant analysis with one shrunken covariance.",
        "ridge": "Ridge regression on one-hot classes.",
        "prototype": "Class means.",
    },
    "tune_on": {
        "auto": "domain where several domains train, else rows.",
        "rows": "Each train row, left out of the head that scores it, and validation rows.",
        "domain": "Each domain, by the head of the other domains.",
        "validation": "Validation rows.",
    },
    "refit": {
        "no": "Train rows only.",
        "yes": "Train and validation rows; validation figures are then of rows that trained.",
    },
    "partition": {
        "domain": "Each domain is one client.",
        "iid": "Rows are dealt at random.",
        "dirichlet": "Each class is dealt in shares drawn from a Dirichlet distribution.",
        "pathological": "Each client has rows of a few classes only.",
        "quantity": "Clients differ in their number of rows.",
    },
}
"""By setting, what each of its choices means."""


def arranged() -> list[tuple[str, str, dataclasses.Field[Any]]]:
    """(section, heading below it, field) of every setting but held_out, in the order of --help."""
    fields = {each.name: each for each in dataclasses.fields(RunConfig) if each.metadata}
    found = []
    for title, chooser, names in SECTIONS:
        placed = [(under(name, chooser), name) for name in names]
        headings = {heading: at for at, (heading, _) in reversed(list(enumerate(placed)))}
        for heading, name in sorted(placed, key=lambda one: (one[0] != "", headings[one[0]])):
            found.append((title, heading, fields.pop(name)))
    return found + [(OTHERS, "", each) for each in fields.values()]


def under(name: str, chooser: str | None) -> str:
    """ "With --method fedprox or ditto" for a setting that only these use; "" for the others."""
    used = [way[chooser] for way in ways_of(name) if chooser in way] if chooser else []
    if name == chooser or len(used) != 1 or len(used[0]) > FEW:
        return ""
    *others, last = used[0]
    return f"With --{chooser} {', '.join(others)}{' or ' if others else ''}{last}"
