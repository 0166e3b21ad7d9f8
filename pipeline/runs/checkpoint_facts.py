"""The facts in an adapter file, checked before anything is done with them."""

import math
from typing import Any

from pipeline.settings import RunConfig

MOST_ROUNDS = RunConfig.__dataclass_fields__["rounds"].metadata["high"]


def check_facts(facts: Any) -> None:
    """Raises ValueError, saying what is wrong, for facts that no training writes.

    rounds_done   a count;  chosen  by fold null or {"round", "val_accuracy", "test_accuracy"}, of a
    round that is done, with accuracies from 0 to 1, and "val_loss" where rounds are chosen by it
    adapters, belongs_to, rounds_sha256  of the right type where they are there
    """
    if not isinstance(facts, dict) or not {"rounds_done", "chosen"} <= facts.keys():
        raise ValueError("it has no facts of a run")
    done = facts["rounds_done"]
    if type(done) is not int or not 0 <= done <= MOST_ROUNDS:
        raise ValueError(f"rounds_done is {_shown(done)}, not a count up to {MOST_ROUNDS:,}")
    if not isinstance(facts["chosen"], list):
        raise ValueError(f"chosen is {_shown(facts['chosen'])}, not a list")
    for each in facts["chosen"]:
        if each is not None:
            _check_chosen(each, done)
    for name, kind in (("adapters", list), ("belongs_to", dict), ("rounds_sha256", str)):
        if not isinstance(facts.get(name, kind()), kind):
            raise ValueError(f"{name} is {_shown(facts[name])}, not a {kind.__name__}")


def _check_chosen(chosen: Any, done: int) -> None:
    names = {"round", "val_accuracy", "test_accuracy"}
    if not isinstance(chosen, dict) or chosen.keys() - {"val_loss"} != names:
        raise ValueError(
            f"chosen has {_shown(chosen)}, not an object of {', '.join(sorted(names))}"
        )
    round, tested = chosen["round"], chosen["test_accuracy"]
    if type(round) is not int or not 0 <= round < done:
        raise ValueError(f"chosen has round {_shown(round)}, not one of the {done} that are done")
    if not isinstance(tested, dict):
        raise ValueError(f"chosen has test_accuracy {_shown(tested)}, not an object")
    # Without validation rows (choose last, closed-form) there is no val_accuracy.
    for value in (v for v in (chosen["val_accuracy"], *tested.values()) if v is not None):
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"chosen has accuracy {_shown(value)}, not a fraction from 0 to 1")
    loss = chosen.get("val_loss")
    if loss is not None and (type(loss) not in (int, float) or not 0 <= loss < math.inf):
        raise ValueError(f"chosen has val_loss {_shown(loss)}, not a loss")


def _shown(value: Any) -> str:
    return ascii(value)[:60]
