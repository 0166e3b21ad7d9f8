"""What a run's chosen adapters answer: the one place where a report computes with a model."""

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from cache.table import FeatureTable
from kernels.answers import top1, unit_features
from kernels.cpu.threads import one_thread
from kernels.heads.plain import Kind, as_rows, shapes
from pipeline.digests import KEY
from pipeline.errors import ConfigError
from pipeline.federation.evaluate import Cached, parts_of, rows_of, zero_shot_top1
from pipeline.federation.plan import build_plan
from pipeline.federation.record import held_out_name
from pipeline.json_files import content_of
from pipeline.plain_files import ADAPTERS, check_plain
from pipeline.settings import RunConfig

MAPPED = 600  # rows of a fold that a picture shows: more hide each other


class Predictions(NamedTuple):
    """Answers for the test rows of a fold; a row stands there once for each adapter asked."""

    rows: np.ndarray  # (n,) int64 row numbers of the table
    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64, by the adapter
    zero_shot: np.ndarray  # (n,) int64, by CLIP alone
    mapped: np.ndarray  # (m,) int64 positions in rows, ascending, m at most MAPPED
    before: np.ndarray  # (m, D) float32, unit features
    after: np.ndarray  # (m, D) float32, what the adapter makes of them, length 1


def predictions(table: FeatureTable, cached: Cached, adapter_file: Path, fold: int) -> Predictions:
    """The chosen adapter's and zero-shot's answers on the test rows of one fold of a run.

    cached        the table on the CPU
    adapter_file  a run's adapter.safetensors; it names the run's settings
    fold          position in the settings' held_out

    Raises ConfigError for a file that does not fit, CacheError for a table that does not.
    """
    config = _config(adapter_file)
    plan = build_plan(table, dataclasses.replace(config, held_out=(config.held_out[fold],)))
    kind, device = plan.work.kind, cached.features.device
    adapters = _best(adapter_file, held_out_name(config.held_out[fold]), len(plan.models), kind)
    asked = [rows_of(parts_of(plan, model, "test"), "test", device) for model in plan.models]
    answers = top1(
        kind, adapters, cached.features, cached.text, cached.unit_text, asked,
        backend=_backend(adapter_file),
    )  # fmt: skip
    rows = torch.cat(asked)
    mapped = np.unique(np.linspace(0, len(rows) - 1, min(MAPPED, len(rows))).astype(np.int64))
    of_model = np.repeat(np.arange(len(asked)), [len(part) for part in asked])[mapped]
    x = cached.features[rows[mapped]]
    with one_thread():
        zero_shot = zero_shot_top1(cached._replace(features=cached.features[rows]))
        after = torch.empty_like(x)
        for m in np.unique(of_model):
            mine = torch.from_numpy(np.flatnonzero(of_model == m))
            after[mine] = unit_features(kind, adapters[m], x, mine)
    return Predictions(
        rows.numpy(),
        table.labels[rows.numpy()],
        torch.cat(answers).numpy(),
        zero_shot.numpy(),
        mapped,
        normalize(x, dim=1).numpy(),
        after.numpy(),
    )


def encodes_a_round(table: FeatureTable, adapter_file: Path) -> int:
    """Images that the released code encodes in one round of this run, nothing being cached.

    Every train row once a local epoch; after it, every train, validation, test and held-out row
    once more, for the accuracies. Source: fedclip/methods/fed_at_clip.py, main.py.
    """
    config = _config(adapter_file)
    return sum(
        sum((config.local_epochs + 1) * len(c.train) + len(c.val) + len(c.test) for c in f.clients)
        + sum(len(unseen.test) for unseen in f.unseen)
        for f in build_plan(table, config).folds
    )


def settings_of(adapter_file: Path) -> dict[str, Any]:
    """The settings of the run that an adapter file belongs to, as its config.json has them."""
    with _opened(adapter_file) as opened:
        return dict(json.loads(opened.metadata()[KEY])["belongs_to"]["settings"])


def _backend(file: Path) -> str:
    """torch for a run that was to have it; for others the fastest here, where it may be another."""
    with _opened(file) as opened:
        belongs = json.loads(opened.metadata()[KEY])["belongs_to"]
    return "torch" if belongs.get("backend") == "torch" else "auto"


def _config(file: Path) -> RunConfig:
    settings = settings_of(file)
    with content_of(file):
        settings["held_out"] = tuple(tuple(names) for names in settings["held_out"])
        return RunConfig(**settings)


def _best(file: Path, held_out: str | None, models: int, kind: Kind) -> Tensor:
    with _opened(file) as opened:
        adapters = json.loads(opened.metadata()[KEY])["adapters"]
        at = [n for n, one in enumerate(adapters) if one["held_out"] == held_out]
        parts = {n: opened.get_slice(f"best.{n}")[at[0] : at[-1] + 1] for n in shapes(kind)}
    try:
        rows = as_rows(kind, parts)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not rows.isfinite().all():
        raise ConfigError(f"{file}: an adapter of it holds numbers that are not finite")
    if len(rows) != models:
        raise ConfigError(f"{file}: holds {len(rows)} adapters; {models} were trained")
    return rows


@contextmanager
def _opened(file: Path):
    check_plain(file, ADAPTERS)
    try:
        with content_of(file), safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as an adapter file ({error})") from error
