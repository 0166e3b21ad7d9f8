"""Every setting of a run, frozen, and the name that a run gets from them."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

METHODS = ("fedavg", "local", "central", "zero-shot")
WEIGHTINGS = ("uniform", "rows")
EVALUATIONS = ("best", "every")


class ConfigError(Exception):
    """A setting that cannot be, or that does not fit the cache it is used on."""

    exit_code = 1


@dataclass(frozen=True)
class RunConfig:
    """One run: what is held out, how the adapter is trained, how rounds are chosen.

    The defaults are those of the released FedCLIP code (fedclip/methods/main.py).
    """

    held_out: tuple[tuple[str, ...], ...] = ((),)
    """One training for each entry; its domains take no part in that training."""
    method: str = "fedavg"
    rounds: int = 200
    local_epochs: int = 1
    lr: float = 5e-5
    batch: int = 32
    weight_decay: float = 0.2
    """Coupled: added to the gradient as weight_decay * weight, as torch.optim.Adam does."""
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    seed: int = 0
    """Fixes the splits, the first adapter and the order of rows."""
    split: float = 0.6
    """Share of a client's rows that train; the rest is halved into validation and test."""
    weighting: str = "uniform"
    eval: str = "best"
    """When test rows are scored: every round, or only in rounds better on validation."""

    def __post_init__(self) -> None:
        """Raises ConfigError for the first setting that cannot be."""
        _one_of("method", self.method, METHODS)
        _one_of("weighting", self.weighting, WEIGHTINGS)
        _one_of("eval", self.eval, EVALUATIONS)
        _range("rounds", self.rounds, 1, 10**7)
        _range("local_epochs", self.local_epochs, 1, 10**5)
        _range("batch", self.batch, 2, 2**20, "a batch of one row is never trained on")
        _range("seed", self.seed, 0, 2**32 - 1)
        _range("lr", self.lr, 0.0, 1e6)
        _range("weight_decay", self.weight_decay, 0.0, 1e6)
        _range("beta1", self.beta1, 0.0, 1.0 - 1e-12)
        _range("beta2", self.beta2, 0.0, 1.0 - 1e-12)
        _range("eps", self.eps, 1e-30, 1.0)
        _range("split", self.split, 0.01, 0.98)
        if not self.held_out:
            raise ConfigError("held_out: no training is asked for; name a domain, all or none")


def as_json(config: RunConfig) -> dict:
    """The settings as JSON can hold them: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def run_id(described: dict) -> str:
    """First 12 hex digits of sha256 over `described` as sorted JSON.

    described  what decides a run's numbers: settings, cache content, backend, device
    """
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is unknown; there are {', '.join(allowed)}")


def _range(name: str, value: float, low: float, high: float, why: str = "") -> None:
    if not (math.isfinite(value) and low <= value <= high):
        reason = f" ({why})" if why else ""
        raise ConfigError(f"{name} must lie in {low:g} to {high:g}{reason}; got {value!r}")
