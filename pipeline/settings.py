"""Every setting of a run, frozen, and the name that a run gets from them."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.heads import HEADS
from kernels.names import LOSSES, MODES, OPTIMIZERS, STARTS
from pipeline.errors import ConfigError, ConflictError
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.method import Refusal


def _number(default: float, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "help": help})


def _choice(default: str, meanings: Mapping[str, str], help: str) -> Any:
    facts = {"choices": tuple(meanings), "meanings": meanings, "help": help}
    return field(default=default, metadata=facts)


def _meanings(names: tuple[str, ...], *meanings: str) -> dict[str, str]:
    return dict(zip(names, meanings, strict=True))


@dataclass(frozen=True)
class RunConfig:
    """One run: what is held out, how adapters are trained and averaged, how rounds are chosen.

    The defaults are those of the released FedCLIP code (fedclip/methods/main.py). Equations and
    sources of every method: docs/methods.md. A field's metadata holds its help, its limits, and
    what each of its choices means.
    """

    held_out: tuple[tuple[str, ...], ...] = ((),)
    """One training for each entry; its domains take no part in that training."""
    method: str = _choice(
        "fedavg",
        {name: method.about for name, method in METHODS.items()},
        "How the clients' adapters are combined, or a baseline.",
    )
    rounds: int = _number(200, 1, 10**7, "Number of server rounds.")
    local_epochs: int = _number(1, 1, 10**5, "Passes over a client's train rows in each round.")
    lr: float = _number(5e-5, 0, 1e6, "Learning rate of the clients.")
    batch: int = _number(32, 2, 2**20, "Rows in each step; a last batch of one row is skipped.")
    weight_decay: float = _number(0.2, 0, 1e6, "Weight decay of the clients' optimizer.")
    beta1: float = _number(0.9, 0, 1 - 1e-12, "First-moment decay of Adam.")
    beta2: float = _number(0.98, 0, 1 - 1e-12, "Second-moment decay of Adam.")
    eps: float = _number(
        1e-6, 1e-30, 1, "Constant added to the square root of Adam's second moment."
    )
    seed: int = _number(
        0, 0, 2**32 - 1, "Seed of the splits, initialization, row order and all other random draws."
    )
    split: float = _number(
        0.6, 0.01, 0.98, "Share of rows to train on; the rest is halved into validation and test."
    )
    weighting: str = _choice(
        "uniform",
        {
            "uniform": "All clients count the same.",
            "rows": "Clients count by their number of train rows.",
        },
        "How clients are weighted when averaging.",
    )
    eval: str = _choice(
        "last",
        {
            "last": "Once, with the kept adapter, after the last round.",
            "best": "Only in rounds that are the best so far.",
            "every": "In every round, and train rows too.",
        },
        "When test rows are scored.",
    )
    choose: str = _choice(
        "accuracy",
        {
            "accuracy": "The one with the highest mean validation accuracy.",
            "loss": "The one with the lowest mean validation loss.",
            "last": "The last one; validation rows are not used.",
        },
        "Which round is kept.",
    )
    mode: str = _choice(
        "FedAtImg",
        _meanings(MODES, "On the image features.", "On the text features.", "One adapter on each."),
        "Which features the adapter is applied to.",
    )
    head: str = _choice(
        "attention",
        {name: head.about for name, head in HEADS.items()},
        "Architecture of the adapter.",
    )
    start: str = _choice(
        "default",
        _meanings(
            STARTS,
            "PyTorch's random initialization.",
            "Exactly at zero-shot CLIP.",
            "At the head that method closed-form finds (head classifier only).",
        ),
        "Initialization of the adapter.",
    )
    rank: int = _number(8, 1, 4096, "Rank of the linear map.")
    loss: str = _choice(
        "contrastive",
        _meanings(
            LOSSES,
            "CLIP's loss over the batch, as released.",
            "Cross-entropy over all classes.",
            "Contrastive, with all rows of one class as positives.",
        ),
        "Loss that the clients minimize.",
    )
    optimizer: str = _choice(
        "adam",
        _meanings(
            OPTIMIZERS,
            "Adam; weight decay is added to the gradient.",
            "AdamW; weight decay is decoupled from the gradient.",
            "SGD with momentum.",
        ),
        "Optimizer of the clients.",
    )
    momentum: float = _number(0.9, 0, 1 - 1e-12, "Momentum of SGD.")
    moments: str = _choice(
        "reset",
        {
            "reset": "Nothing: every round starts with a fresh optimizer.",
            "kept": "Their moments and step count.",
        },
        "What clients keep of the optimizer between rounds.",
    )
    schedule: str = _choice(
        "constant",
        {"constant": "The same rate in every round.", "cosine": "Decays to 0 along half a cosine."},
        "Learning-rate schedule over the rounds.",
    )
    mu: float = _number(0.01, 0, 1e6, "Weight of the proximal term (towards the server's adapter).")
    server_lr: float = _number(1.0, 0, 1e6, "Learning rate of the server.")
    server_momentum: float = _number(0.9, 0, 1 - 1e-12, "Momentum of the server.")
    server_beta1: float = _number(0.9, 0, 1 - 1e-12, "First-moment decay of the server.")
    server_beta2: float = _number(0.99, 0, 1 - 1e-12, "Second-moment decay of the server.")
    tau: float = _number(1e-3, 1e-30, 1e6, "Constant added to the root of the second moment.")
    trim: float = _number(0.2, 0, 0.499, "Share of the clients trimmed at each end.")
    byzantine: int = _number(1, 0, 10**6, "Number of clients that may be malicious.")
    keep: int = _number(
        1, 1, 10**6, "Number of clients with the lowest scores to average; above 1 it is "
        "Multi-Krum.",
    )  # fmt: skip
    client_fraction: float = _number(1.0, 1e-6, 1, "Share of the clients sampled in each round.")
    dropout: float = _number(0.0, 0, 1, "Probability that a sampled client does not report.")
    stragglers: float = _number(
        0.0, 0, 1, "Probability that a client completes only part of its steps."
    )
    clip: float = _number(
        0.0, 0, 1e12, "Largest norm of a client's update, or of its sums; 0 means no limit."
    )
    noise: float = _number(
        0.0, 0, 1e6, "Noise multiplier of central differential privacy; noise on updates needs "
        "--clip.",
    )  # fmt: skip
    payload: str = _choice(
        "fp32",
        {
            "fp32": "Single precision.",
            "fp16": "Half precision.",
            "int8": "8-bit integers with one scale for every 512 numbers.",
        },
        "Encoding of client updates.",
    )
    partition: str = _choice(
        "domain",
        {
            "domain": "Each domain is one client.",
            "iid": "Rows are dealt at random.",
            "dirichlet": "Each class is dealt in shares drawn from a Dirichlet distribution.",
            "pathological": "Each client has rows of a few classes only.",
            "quantity": "Clients differ in their number of rows.",
        },
        "How a domain's rows are divided among its clients.",
    )
    clients: int = _number(1, 1, 10**6, "Number of clients in each domain.")
    alpha: float = _number(
        0.5, 1e-6, 1e9, "Concentration of the Dirichlet distribution; smaller is less even."
    )
    classes_per_client: int = _number(2, 1, 10**6, "Number of classes at each client.")
    shots: int = _number(0, 0, 10**9, "Train rows of each class at each client; 0 means all.")
    fixed_split: str = _choice(
        "keep",
        {
            "keep": "Use it as it is.",
            "holdout": "Validate on held-out train rows and test on all other rows.",
        },
        "How to use a split that the cache contains.",
    )
    personalise: int = _number(
        0, 0, 10**4, "Epochs of fine-tuning at each client after the last round."
    )
    solver: str = _choice(
        "auto",
        {
            "auto": "gda or ridge, whichever does better on the tuning rows (--tune-on).",
            "gda": "Gaussian discriminant analysis with one shrunken covariance.",
            "ridge": "Ridge regression on one-hot classes.",
            "prototype": "Class means.",
        },
        "Closed-form solver of the classifier.",
    )
    tune_on: str = _choice(
        "auto",
        {
            "auto": "domain where several domains train, else rows.",
            "rows": "Each train row, left out of the head that scores it, and validation rows.",
            "domain": "Each domain, by the head of the other domains.",
            "validation": "Validation rows.",
        },
        "Rows that choose solver, shape and strength.",
    )
    shape: float = _number(
        0.0, 0, 1e12, "Shrinkage of the solver: eps of gda, reg of ridge, kappa of prototype; "
        "0 means tuned.",
    )  # fmt: skip
    strength: float = _number(
        0.0, 0, 1e6, "Weight of the solver's logits next to zero-shot's; 0 means tuned."
    )
    refit: str = _choice(
        "no",
        {
            "no": "Train rows only.",
            "yes": "Train and validation rows; validation figures are then of rows that trained.",
        },
        "Whether to train on validation rows as well.",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for the first invalid setting."""
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))
        if not self.held_out:
            raise ConfigError("held_out is empty; name a domain, all or none")
        if why := HEADS[self.head].refuse(self.mode, self.start):
            raise ConflictError(why)
        for wrong, message in (*METHODS[self.method].refusals, *_CONFLICTS):
            if wrong(self):
                raise ConflictError(message)


PRESETS: dict[str, dict[str, Any]] = {
    "released": {},
    "tuned": {
        "mode": "FedAtTxt",
        "head": "classifier",
        "start": "closed-form",
        "loss": "class",
        "optimizer": "sgd",
        "lr": 1.0,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "local_epochs": 3,
        "weighting": "rows",
        "choose": "last",
        "refit": "yes",
        "rounds": 10,
    },
    "cosine": {
        "mode": "FedAtTxt",
        "head": "cosine",
        "loss": "class",
        "optimizer": "sgd",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "local_epochs": 3,
        "method": "fedavgm",
        "server_lr": 2.0,
        "server_momentum": 0.5,
        "weighting": "rows",
        "choose": "loss",
    },
}
"""Settings by name: the released code's, and those that docs/findings.md recommends. tuned starts
training at the closed-form head; cosine trains a classifier from the text features."""


LATER = ("keep", "choose", "solver", "tune_on", "shape", "strength", "refit")
"""Settings that runs of earlier releases do not have."""

_PRIVATE = [name for name, method in METHODS.items() if method.private]
_CONFLICTS: tuple[Refusal, ...] = (
    (
        lambda c: c.refit == "yes" and c.choose != "last" and METHODS[c.method].trains,
        "refit trains on the validation rows, so they cannot choose the round: pass --choose last",
    ),
    (
        lambda c: (
            c.start == "closed-form" and not HEADS[c.head].closed_form and METHODS[c.method].trains
        ),
        "start closed-form is a linear classifier: pass --head classifier --mode FedAtTxt",
    ),
    (
        lambda c: c.start == "closed-form" and c.noise > 0 and METHODS[c.method].trains,
        "noise protects the updates, not the sums that start closed-form sends first: pass "
        "--method closed-form, which releases them with noise, or another --start",
    ),
    (
        lambda c: c.partition == "domain" and c.clients != 1,
        "partition domain makes each domain one client: pass --clients 1, or --partition iid "
        "(dirichlet, pathological, quantity)",
    ),
    (
        lambda c: c.noise > 0 and c.clip == 0 and METHODS[c.method].averages,
        "noise is a multiple of the longest update that clip lets through: pass --clip 1 or "
        "another length, or --noise 0",
    ),
    (
        lambda c: (
            c.noise > 0
            and (
                (c.weighting != "uniform" and METHODS[c.method].averages)
                or not METHODS[c.method].private
            )
        ),
        "noise (central DP) is defined for a uniform mean: pass --weighting uniform --method "
        f"{_PRIVATE[0]} ({', '.join(_PRIVATE[1:])}), or --noise 0",
    ),
)
"""Invalid combinations beside those that heads and methods refuse themselves."""


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings in JSON's types: tuples become lists.

    A setting in LATER is left out at its default, so that runs of earlier releases keep their id.
    """
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    default = {name: getattr(RunConfig, name) for name in LATER}
    return {n: v for n, v in settings.items() if n not in default or v != default[n]}


def from_json(settings: Any) -> RunConfig:
    """The inverse of as_json, for settings that came from elsewhere.

    Raises ConfigError for anything else, and for invalid settings.
    """
    try:
        held_out = tuple(tuple(str(name) for name in names) for names in settings["held_out"])
        return RunConfig(**{**settings, "held_out": held_out})
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"invalid run settings ({error})") from error


def run_id(described: dict[str, Any]) -> str:
    """First 12 hex digits of sha256 over `described` as sorted JSON.

    described  what decides a run's numbers: settings, cache content, backend, device
    """
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check(each: dataclasses.Field[Any], value: Any) -> None:
    limits = each.metadata
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(
            f"{each.name} {value!r} is unknown; choose from {', '.join(limits['choices'])}"
        )
    if "low" in limits:
        low, high = limits["low"], limits["high"]
        number = isinstance(value, int if each.type is int else int | float)
        if not number or isinstance(value, bool) or not math.isfinite(value):
            kind = "a whole number" if each.type is int else "a number"
            raise ConfigError(f"{each.name} must be {kind}; got {value!r}")
        if not low <= value <= high:
            raise ConfigError(
                f"{each.name} must lie in {low:g} to {high:g}; got {value!r}. {limits['help']}"
            )
