"""Every setting of a run, frozen, and the name that a run gets from them."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kernels.names import HEADS, LOSSES, MODES, OPTIMIZERS, STARTS
from pipeline.errors import ConfigError, ConflictError

AVERAGING = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold",
             "ditto", "fedper", "median", "trimmed-mean", "krum")  # fmt: skip
METHODS = (*AVERAGING, "local", "central", "zero-shot")
TRAINED = METHODS[:-1]
"""Methods that train anything."""
PERSONAL = ("local", "ditto", "fedper")
"""Methods that answer each client with an adapter of its own."""


class Above(NamedTuple):
    """Any number above `low`, as a condition in USED_BY."""

    low: float


Way = dict[str, tuple[str, ...] | Above]


def _number(default: float, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "help": help})


def _choice(default: str, choices: tuple[str, ...], help: str) -> Any:
    return field(default=default, metadata={"choices": choices, "help": help})


@dataclass(frozen=True)
class RunConfig:
    """One run: what is held out, how adapters are trained and averaged, how rounds are chosen.

    The defaults are those of the released FedCLIP code (fedclip/methods/main.py). Equations and
    sources of every method: docs/methods.md. A field's metadata holds its help and its limits.
    """

    held_out: tuple[tuple[str, ...], ...] = ((),)
    """One training for each entry; its domains take no part in that training."""
    method: str = _choice("fedavg", METHODS, "How clients' adapters become one, or a baseline.")
    rounds: int = _number(200, 1, 10**7, "Server rounds.")
    local_epochs: int = _number(1, 1, 10**5, "Passes over a client's train rows in a round.")
    lr: float = _number(5e-5, 0, 1e6, "Learning rate of the clients.")
    batch: int = _number(32, 2, 2**20, "Rows a step; a batch of one row is never trained on.")
    weight_decay: float = _number(
        0.2, 0, 1e6, "Added to the gradient (adam, sgd), or apart from it (adamw)."
    )
    beta1: float = _number(0.9, 0, 1 - 1e-12, "Adam's.")
    beta2: float = _number(0.98, 0, 1 - 1e-12, "Adam's.")
    eps: float = _number(1e-6, 1e-30, 1, "Adam's.")
    seed: int = _number(0, 0, 2**32 - 1, "Fixes splits, start, order and whatever else is drawn.")
    split: float = _number(
        0.6, 0.01, 0.98, "Share of rows that train; the rest is halved into validation and test."
    )
    weighting: str = _choice("uniform", ("uniform", "rows"), "What a client counts in the mean.")
    eval: str = _choice(
        "best", ("best", "every"), "Score test rows when validation improves, or every round."
    )
    choose: str = _choice(
        "accuracy", ("accuracy", "loss", "last"),
        "The round kept: best validation accuracy, least validation loss, or the last round.",
    )  # fmt: skip
    mode: str = _choice("FedAtImg", MODES, "Where adapters sit: image features, text, both.")
    head: str = _choice("attention", HEADS, "What an adapter computes.")
    start: str = _choice("default", STARTS, "identity: training starts exactly at zero-shot.")
    rank: int = _number(8, 1, 4096, "Of head low-rank.")
    loss: str = _choice("contrastive", LOSSES, "What clients minimise.")
    optimizer: str = _choice("adam", OPTIMIZERS, "Of the clients.")
    momentum: float = _number(0.9, 0, 1 - 1e-12, "Of optimizer sgd.")
    moments: str = _choice("reset", ("reset", "kept"), "The optimizer's memory between rounds.")
    schedule: str = _choice("constant", ("constant", "cosine"), "Of the lr over the rounds.")
    mu: float = _number(0.01, 0, 1e6, "Pull towards the server's adapter: fedprox, ditto.")
    server_lr: float = _number(1.0, 0, 1e6, "fedavgm, fedadam, fedyogi, fedadagrad, scaffold.")
    server_momentum: float = _number(0.9, 0, 1 - 1e-12, "fedavgm.")
    server_beta1: float = _number(0.9, 0, 1 - 1e-12, "fedadam, fedyogi, fedadagrad.")
    server_beta2: float = _number(0.99, 0, 1 - 1e-12, "fedadam, fedyogi.")
    tau: float = _number(1e-3, 1e-30, 1e6, "fedadam, fedyogi, fedadagrad: added to the root.")
    trim: float = _number(0.2, 0, 0.499, "trimmed-mean: share cut off at each end.")
    byzantine: int = _number(1, 0, 10**6, "krum: clients that may lie.")
    keep: int = _number(1, 1, 10**6, "krum: clients of least score averaged; above 1: Multi-Krum.")
    client_fraction: float = _number(1.0, 1e-6, 1, "Share of the clients chosen for a round.")
    dropout: float = _number(0.0, 0, 1, "Chance that a chosen client does not report.")
    stragglers: float = _number(0.0, 0, 1, "Chance that a client makes a part of its steps only.")
    clip: float = _number(0.0, 0, 1e12, "Longest update a client may send; 0: any.")
    noise: float = _number(0.0, 0, 1e6, "Central DP: noise multiplier; needs clip.")
    payload: str = _choice("fp32", ("fp32", "fp16", "int8"), "How updates travel.")
    partition: str = _choice(
        "domain", ("domain", "iid", "dirichlet", "pathological", "quantity"),
        "How a domain's rows are shared out to its clients.",
    )  # fmt: skip
    clients: int = _number(1, 1, 10**6, "Clients in each domain.")
    alpha: float = _number(0.5, 1e-6, 1e9, "partition dirichlet, quantity: small is uneven.")
    classes_per_client: int = _number(2, 1, 10**6, "partition pathological.")
    shots: int = _number(0, 0, 10**9, "Train rows of each class a client keeps; 0: all.")
    fixed_split: str = _choice(
        "keep", ("keep", "holdout"),
        "A cache's own split: keep it, or validate on held-out train rows and test on all others.",
    )  # fmt: skip
    personalise: int = _number(0, 0, 10**4, "Epochs of fine-tuning at each client at the end.")

    def __post_init__(self) -> None:
        """Raises ConfigError for the first setting that cannot be."""
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))
        if not self.held_out:
            raise ConfigError("held_out: no training is asked for; name a domain, all or none")
        for wrong, message in _CONFLICTS:
            if wrong(self):
                raise ConflictError(message)


PRESETS: dict[str, dict[str, Any]] = {
    "released": {},
    "tuned": {
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
"""Settings by name: the released code's, and those that docs/findings.md arrives at."""

_ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")
_ADAM: Way = {"method": TRAINED, "optimizer": ("adam", "adamw")}
_SENT: Way = {"method": AVERAGING}
_COHORTS: Way = {"method": (*AVERAGING, "local")}
_KRUM: Way = {"method": ("krum",)}
USED_BY: dict[str, tuple[Way, ...]] = {
    **{
        name: ()
        for name in ("held_out", "method", "seed", "split", "fixed_split", "partition", "clients")
    },
    "weighting": (
        {"method": tuple(m for m in AVERAGING if m not in ("median", "trimmed-mean", "krum"))},
        {**_KRUM, "keep": Above(1)},
    ),
    "start": ({"method": TRAINED, "head": ("attention", "linear")},),
    "rank": ({"method": TRAINED, "head": ("low-rank",)},),
    "beta1": (_ADAM,),
    "beta2": (_ADAM,),
    "eps": (_ADAM,),
    "momentum": ({"method": TRAINED, "optimizer": ("sgd",)},),
    "moments": (_ADAM, {"method": TRAINED, "optimizer": ("sgd",), "momentum": Above(0)}),
    "mu": ({"method": ("fedprox", "ditto")},),
    "server_lr": ({"method": ("fedavgm", *_ADAPTIVE, "scaffold")},),
    "server_momentum": ({"method": ("fedavgm",)},),
    "server_beta1": ({"method": _ADAPTIVE},),
    "server_beta2": ({"method": ("fedadam", "fedyogi")},),
    "tau": ({"method": _ADAPTIVE},),
    "trim": ({"method": ("trimmed-mean",)},),
    "byzantine": (_KRUM,),
    "keep": (_KRUM,),
    "client_fraction": (_COHORTS,),
    "dropout": (_COHORTS,),
    "stragglers": (_COHORTS,),
    "clip": (_SENT,),
    "noise": (_SENT,),
    "payload": (_SENT,),
    "alpha": ({"partition": ("dirichlet", "quantity"), "clients": Above(1)},),
    "classes_per_client": ({"partition": ("pathological",)},),
}
"""By setting the ways in which it plays a part in a run: conditions on other settings, all of
which must hold; (): always. What is not listed needs a method that trains (`ways_of`). A setting
that is named in vain is told by pipeline/settings_used.py."""

LATER = ("keep", "choose")
"""Settings that runs of earlier releases do not have."""

_CONFLICTS: tuple[tuple[Callable[["RunConfig"], bool], str], ...] = (
    (
        lambda c: c.head == "cosine" and c.mode != "FedAtTxt",
        "head cosine is a classifier in the place of the text features: pass --mode FedAtTxt",
    ),
    (
        lambda c: c.head == "clip-adapter" and c.start == "identity",
        "start identity: head clip-adapter ends in a ReLU, which passes no gradient at 0, so it "
        "would never train; pass --start default or --head low-rank",
    ),
    (
        lambda c: c.method == "scaffold" and (c.optimizer, c.momentum) != ("sgd", 0),
        "method scaffold corrects plain gradients (its update divides by steps * lr): pass "
        "--optimizer sgd --momentum 0",
    ),
    (
        lambda c: c.method == "scaffold" and c.lr == 0,
        "method scaffold divides by the lr, which is 0: pass one above 0, such as --lr 1e-3",
    ),
    (
        lambda c: c.method == "fedper" and c.head in ("linear", "cosine"),
        "method fedper keeps the head's last layer at the client; linear and cosine have one layer "
        "only, so nothing would be shared. Pass --head low-rank or --method local",
    ),
    (
        lambda c: c.partition == "domain" and c.clients != 1,
        "partition domain makes each domain one client: pass --clients 1, or --partition iid "
        "(dirichlet, pathological, quantity)",
    ),
    (
        lambda c: c.noise > 0 and c.clip == 0,
        "noise is a multiple of the longest update that clip lets through: pass --clip 1 or "
        "another length, or --noise 0",
    ),
    (
        lambda c: c.noise > 0 and (c.weighting != "uniform" or c.method not in
                                   ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi",
                                    "fedadagrad")),
        "noise (central DP) is worked out for a uniform mean: pass --weighting uniform --method "
        "fedavg (fedprox, fedavgm, fedadam, fedyogi, fedadagrad), or --noise 0",
    ),
)  # fmt: skip


def ways_of(name: str) -> tuple[Way, ...]:
    """The ways in which a setting plays a part; see USED_BY."""
    return USED_BY.get(name, ({"method": TRAINED},))


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON can hold them: tuples become lists.

    A setting in LATER is left out at its default: runs of before it keep their id and files.
    """
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    default = {name: getattr(RunConfig, name) for name in LATER}
    return {n: v for n, v in settings.items() if n not in default or v != default[n]}


def from_json(settings: Any) -> RunConfig:
    """The inverse of as_json, for settings that came from elsewhere.

    Raises ConfigError for what is no settings, and for settings that cannot be.
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
            f"{each.name} {value!r} is unknown; there are {', '.join(limits['choices'])}"
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
