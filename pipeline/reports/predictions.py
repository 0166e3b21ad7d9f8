"""What a run's kept adapters answer: the one place where a report computes with a model."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.table import FeatureTable
from kernels.answers import top1, unit_features
from kernels.cpu.threads import one_thread
from kernels.heads.plain import as_rows
from pipeline.errors import ConfigError
from pipeline.federation.evaluate import Cached, parts_of, rows_of, zero_shot_top1
from pipeline.federation.plan import build_plan
from pipeline.federation.record import held_out_name
from pipeline.json_files import content_of
from pipeline.runs.folder import BEST, read_adapters
from pipeline.runs.outcomes import Tested
from pipeline.settings import RunConfig, from_json

MAPPED = 600  # rows of a fold that a picture shows: more hide each other


class Kept(NamedTuple):
    """The adapters of a run's kept rounds.

    parts     (A, ...) float32 each, by the name of an adapter's part
    held_out  of each of the A, None for none
    backend   torch for a run that was to have it; for others the fastest here
    """

    file: Path
    settings: dict[str, Any]  # of the run, as its config.json has them
    config: RunConfig
    parts: dict[str, Tensor]
    held_out: tuple[str | None, ...]
    backend: str


class Predictions(NamedTuple):
    """Answers for the test rows of a fold; a row is listed once for each adapter asked."""

    rows: np.ndarray  # (n,) int64 row numbers of the table
    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64, by the adapter
    zero_shot: np.ndarray  # (n,) int64, by CLIP alone
    mapped: np.ndarray  # (m,) int64 positions in rows, ascending, m at most MAPPED
    before: np.ndarray  # (m, D) float32, unit features
    after: np.ndarray  # (m, D) float32, what the adapter makes of them, length 1


def read_kept(file: Path) -> Kept:
    """The adapters in a run's adapter.safetensors. Raises ConfigError for another file."""
    tensors, facts = read_adapters(file)
    with content_of(file):
        belongs = facts["belongs_to"]
        parts = {n.removeprefix(BEST): t for n, t in tensors.items() if n.startswith(BEST)}
        held_out = tuple(one["held_out"] for one in facts["adapters"])
        backend = "torch" if belongs.get("backend") == "torch" else "auto"
        settings = dict(belongs["settings"])
        return Kept(file, settings, from_json(settings), parts, held_out, backend)


def predictions(
    table: FeatureTable, cached: Cached, kept: Kept, fold: int, known: Tested | None = None
) -> Predictions:
    """The kept adapters' and zero-shot's answers on the test rows of one fold of a run.

    cached  the table on the CPU
    fold    position in the settings' held_out
    known   what the adapters answered when they were trained: they are not asked again

    Raises ConfigError for adapters that do not fit, CacheError for a table that does not.
    """
    held_out = kept.config.held_out[fold]
    plan = build_plan(table, dataclasses.replace(kept.config, held_out=(held_out,)))
    kind, device = plan.work.kind, cached.features.device
    at = [n for n, name in enumerate(kept.held_out) if name == held_out_name(held_out)]
    try:
        adapters = as_rows(kind, {name: part[at] for name, part in kept.parts.items()})
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{kept.file}: {error}") from error
    if not adapters.isfinite().all():
        raise ConfigError(f"{kept.file}: an adapter holds numbers that are not finite")
    if len(adapters) != len(plan.models):
        raise ConfigError(
            f"{kept.file}: holds {len(adapters)} adapters; {len(plan.models)} were trained"
        )
    asked = [rows_of(parts_of(plan, model, "test"), "test", device) for model in plan.models]
    rows = torch.cat(asked)
    if known is not None and np.array_equal(known.rows, rows.numpy()):
        answers = known.answers
    else:
        answers = torch.cat(top1(
            kind, adapters, cached.features, cached.text, cached.unit_text, asked,
            backend=kept.backend,
        )).numpy()  # fmt: skip
    mapped = np.unique(np.linspace(0, len(rows) - 1, min(MAPPED, len(rows))).astype(np.int64))
    of_model = np.repeat(np.arange(len(asked)), [len(part) for part in asked])[mapped]
    x = cached.features[rows[mapped]]
    with one_thread():
        zero_shot = zero_shot_top1(cached, rows)
        after = torch.empty_like(x)
        for m in np.unique(of_model):
            mine = torch.from_numpy(np.flatnonzero(of_model == m))
            after[mine] = unit_features(kind, adapters[m], x, mine)
    return Predictions(
        rows.numpy(),
        table.labels[rows.numpy()],
        answers,
        zero_shot.numpy(),
        mapped,
        normalize(x, dim=1).numpy(),
        after.numpy(),
    )


def encodes_a_round(table: FeatureTable, config: RunConfig) -> int:
    """Images that the released code encodes in one round of this run, nothing being cached.

    Every train row once a local epoch; after it, every train, validation, test and held-out row
    once more, for the accuracies. Source: fedclip/methods/fed_at_clip.py, main.py.
    """
    return sum(
        sum((config.local_epochs + 1) * len(c.train) + len(c.val) + len(c.test) for c in f.clients)
        + sum(len(unseen.test) for unseen in f.unseen)
        for f in build_plan(table, config).folds
    )
