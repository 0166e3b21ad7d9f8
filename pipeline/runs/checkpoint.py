"""Converts progress to the named tensors and JSON facts of a run's adapter file, and back."""

from dataclasses import asdict

from torch import Tensor

from kernels.heads.plain import as_rows, named
from pipeline.errors import ConfigError
from pipeline.federation.plan import Plan
from pipeline.federation.record import held_out_name
from pipeline.federation.state import model_rows
from pipeline.federation.training import Chosen, Progress
from pipeline.runs.folder import check_facts


def to_tensors(plan: Plan, progress: Progress) -> tuple[dict[str, Tensor], dict]:
    """best.<part> and last.<part>, a row for each of plan.models; state.<name> for the rest.

    Where the scored adapters are the servers', "last" holds the state's "server" whole.
    """
    kind, last = plan.work.kind, model_rows(plan, progress.state)
    tensors = {
        f"{when}.{name}": part
        for when, rows in (("best", progress.best), ("last", last))
        for name, part in named(kind, rows).items()
    }
    same = last is progress.state["server"]
    kept = {n: v for n, v in progress.state.items() if not (same and n == "server")}
    facts = {
        "rounds_done": progress.rounds_done,
        "chosen": [_facts(chosen) if chosen else None for chosen in progress.chosen],
        "adapters": [
            {
                "held_out": held_out_name(plan.folds[model.fold].held_out),
                "clients": [plan.folds[model.fold].clients[k].name for k in model.clients],
            }
            for model in plan.models
        ],
    }
    return tensors | {f"state.{name}": value for name, value in kept.items()}, facts


def from_tensors(plan: Plan, tensors: dict[str, Tensor], facts: dict, first: Progress) -> Progress:
    """The inverse of to_tensors; first is the plan's progress before round 0, on its device.

    Raises ConfigError for facts that no training writes, or that do not fit the plan.
    """
    try:
        check_facts(facts)
        return _from_tensors(plan, tensors, facts, first)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the checkpoint does not belong to this training ({error}); restore it from a copy, "
            "or pass --force to move it aside and train again"
        ) from error


def _from_tensors(plan: Plan, tensors: dict[str, Tensor], facts: dict, first: Progress) -> Progress:
    device = first.best.device
    state = {
        name: tensors[f"state.{name}"].to(device if name != "steps" else "cpu")
        if f"state.{name}" in tensors
        else as_rows(plan.work.kind, _under(tensors, "last.")).to(device)
        for name in first.state
    }
    best = as_rows(plan.work.kind, _under(tensors, "best.")).to(device)
    for name, value in {**state, "best": best}.items():
        wanted = first.best if name == "best" else first.state[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}, needs {wanted.dtype} of "
                f"{tuple(wanted.shape)}"
            )
    done, folds = facts["rounds_done"], plan.folds
    most = max((fold.config.rounds for fold in folds), default=0)
    if done > most:
        raise ValueError(f"rounds_done is {done}, and the training has {most} rounds")
    if len(facts["chosen"]) != len(folds) or (done and None in facts["chosen"]):
        raise ValueError(f"chosen does not have a round for each of {len(folds)} trainings")
    chosen = tuple(Chosen(**each) if each else None for each in facts["chosen"])
    return Progress(done, state, best, chosen)


def _facts(chosen: Chosen) -> dict:
    return {n: v for n, v in asdict(chosen).items() if n != "val_loss" or v is not None}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
