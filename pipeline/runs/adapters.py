"""Reads a trained adapter of a run with its model, prompts and classes."""

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.identity import compare_identity
from kernels.heads.plain import Kind, as_rows
from pipeline.encoder.hub import HUB_PREFIXES
from pipeline.encoder.model import ClipModel, load_model
from pipeline.encoder.pixels import DECODERS, PREPROCESSING
from pipeline.encoder.towers import OPENAI, Towers, towers_fact, towers_of
from pipeline.encoder.weights import OPENAI_NAMES, find_weights
from pipeline.errors import ConfigError
from pipeline.federation.plan import adapter_kind
from pipeline.json_files import content_of
from pipeline.runs.folder import BEST, read_adapters
from pipeline.settings import RunConfig

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """One adapter of a run.

    source          the adapter file
    kind, row       what it computes, and its numbers (P,) float32, see kernels/heads/plain.py
    held_out        its held-out domains, as results name them; None for none
    rounds          of training so far
    model           the name of the CLIP whose features it was trained on; None: not recorded
    weights_sha256  of that CLIP, see ClipModel;   preprocessing  as encoder.pixels.PREPROCESSING
    towers          attention heads and activation of that CLIP
    templates       its prompts;   class_names  C of them, in the order of the run's cache
    """

    source: Path
    kind: Kind
    row: Tensor
    held_out: str | None
    rounds: int
    model: str | None
    weights_sha256: str
    preprocessing: dict[str, Any]
    templates: tuple[str, ...]
    class_names: tuple[str, ...]
    towers: Towers = OPENAI


def read_trained(
    run: str | PathLike[str], held_out: str | None = None, client: str | None = None
) -> Trained:
    """The chosen round's adapter of a run: a run folder, or its adapter.safetensors.

    held_out  which training's, "none" for the one without held-out domains; None if there is only
    one
    client    whose, if each client has its own; None: the shared one

    Raises ConfigError if these do not select one adapter, listing what there is; for a folder or
    file without adapters; and if the run does not record its model.
    """
    file = _adapter_file(Path(run))
    try:
        tensors, facts = read_adapters(file)
    except RecursionError as error:
        raise ConfigError(f"{file}: its metadata is nested too deeply") from error
    with content_of(file):
        belongs = facts["belongs_to"]
        cache, settings = belongs["cache"], dict(belongs["settings"])
        settings["held_out"] = tuple(tuple(names) for names in settings["held_out"])
        config = RunConfig(**settings)
        encoder = cache.get("encoder") or {}
        if not all(encoder.get(name) for name in ("weights_sha256", "templates", "preprocessing")):
            raise ConfigError(
                f"{file}: does not record which CLIP, prompts and preprocessing its features came "
                "from (imported features, or a run of an older version), so images cannot be "
                "encoded in the same way; train on a cache created by ./run.sh extract"
            )
        class_names = tuple(encoder["class_names"])
        people = [n for one in facts["adapters"] for n in (one["held_out"] or "", *one["clients"])]
        for name in (*class_names, *people):  # unprintable ones could control a terminal
            if not isinstance(name, str) or not name.isprintable():
                raise ValueError(f"{name!r} is not a name")
        kind = adapter_kind(config, int(cache["width"]), len(class_names))
        at = _choose(file, facts["adapters"], held_out, client)
        own = {n.removeprefix(BEST): t for n, t in tensors.items() if n.startswith(BEST)}
        rows = as_rows(kind, own)
        if rows.ndim != 2 or len(rows) != len(facts["adapters"]):
            raise ValueError(
                f"adapters of shape {tuple(rows.shape)}, {len(facts['adapters'])} listed"
            )
        if not rows[at].isfinite().all():
            raise ConfigError(f"{file}: the adapter contains numbers that are not finite")
        return Trained(
            file,
            kind,
            rows[at],
            facts["adapters"][at]["held_out"],
            int(facts["rounds_done"]),
            cache.get("model"),
            str(encoder["weights_sha256"]),
            dict(encoder["preprocessing"]),
            tuple(map(str, encoder["templates"])),
            class_names,
            towers_of(encoder),
        )


def load_its_model(trained: Trained, model: str | None, device: torch.device) -> ClipModel:
    """Loads the CLIP that an adapter was trained with, by its recorded name or from `model`.

    model  a name or a file of weights; None: the recorded name, or the built-in CLIP

    Raises StaleCache for another CLIP, before a wrong one of OpenAI's is downloaded; WeightsError
    as load_model.
    """
    of_hub = str(trained.model).startswith(HUB_PREFIXES)
    recorded = trained.model if of_hub or trained.model in OPENAI_NAMES else None
    words = model or recorded or "demo"
    name, _ = find_weights(words)
    if name in OPENAI_NAMES:
        compare_identity(
            {"model": name}, {"model": trained.model}, trained.source, _way_out(trained)
        )
    clip = load_model(words, device, trained.towers)
    for note in refuse_other_model(trained, clip):
        LOG.warning("%s", note)
    return clip


def refuse_other_model(trained: Trained, clip: ClipModel) -> list[str]:
    """Raises StaleCache, naming the field, if `clip` encodes images differently than in training.

    Returns a warning for each decoding library of another version, which may change single pixels.
    """
    found = {k: v for k, v in trained.preprocessing.items() if k not in DECODERS}
    asked = {k: v for k, v in PREPROCESSING.items() if k not in DECODERS}
    compare_identity(
        {
            "weights_sha256": clip.weights_sha256,
            "width": clip.width,
            "preprocessing": asked,
            "towers": towers_of(towers_fact(clip.architecture))._asdict(),
        },
        {
            "weights_sha256": trained.weights_sha256,
            "width": trained.kind.width,
            "preprocessing": found,
            "towers": trained.towers._asdict(),
        },
        trained.source,
        _way_out(trained),
    )
    return [
        f"trained on images decoded by {trained.preprocessing.get(k)}; these are decoded by "
        f"{PREPROCESSING[k]}"
        for k in DECODERS
        if trained.preprocessing.get(k) != PREPROCESSING[k]
    ]


def _way_out(trained: Trained) -> str:
    return (
        f"it belongs to {trained.model or 'another CLIP'}; pass that model's weights with --model"
    )


def _adapter_file(run: Path) -> Path:
    file = run / "adapter.safetensors" if run.is_dir() else run
    if file.exists():
        return file
    if (run / "trials.jsonl").exists():
        raise ConfigError(
            f"{run}: a sweep keeps no adapters; train its best configuration with the command that "
            "it prints"
        )
    if (run / "config.json").exists():
        raise ConfigError(
            f"{run}: contains no adapter: zero-shot trains none, other methods write one in their "
            "first round"
        )
    found = "not a run folder" if run.is_dir() else "no such run"
    raise ConfigError(f"--run {run}: {found}; pass a folder that ./run.sh federate printed")


def _choose(
    file: Path, adapters: list[dict[str, Any]], held_out: str | None, client: str | None
) -> int:
    """The position of the adapter that --held-out and --client select."""
    names = list(dict.fromkeys(one["held_out"] or "none" for one in adapters))
    if held_out is None and len(names) > 1:
        raise ConfigError(f"{file}: holds adapters of several trainings: --held-out {_or(names)}")
    if held_out is not None and held_out not in names:
        raise ConfigError(f"--held-out {held_out}: {file} has {', '.join(names) or 'none'}")
    wanted = held_out or names[0]
    mine = [n for n, one in enumerate(adapters) if (one["held_out"] or "none") == wanted]
    clients = [name for n in mine for name in adapters[n]["clients"]]
    if client is not None:
        its = [n for n in mine if client in adapters[n]["clients"]]
        if len(its) != 1:
            raise ConfigError(f"--client {client}: {file} has {', '.join(clients) or 'no clients'}")
        return its[0]
    shared = mine if len(mine) == 1 else [n for n in mine if not adapters[n]["clients"]]
    if len(shared) != 1:
        raise ConfigError(f"{file}: each client has its own adapter: --client {_or(clients)}")
    return shared[0]


def _or(names: list[str]) -> str:
    return " or ".join(names[:12]) + (f" or {len(names) - 12} more" if len(names) > 12 else "")
