"""A site of a federation beyond one machine: one cache file, and its clients' half of a round."""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.identity import compare_identity
from cache.store import read_table
from cache.table import FeatureTable
from kernels.backends import pick_device
from kernels.heads.plain import Kind, first_row, size
from pipeline.encoder.pixels import DECODERS
from pipeline.encoder.towers import towers_fact
from pipeline.errors import ConfigError
from pipeline.federation.clients import ClientSplit, split_domain
from pipeline.federation.evaluate import (
    Cached,
    answers_of,
    rows_of,
    validation_losses,
    zero_shot_top1,
)
from pipeline.federation.local import Engine, steps_of_lanes, train_lanes
from pipeline.federation.payload import Encoded, decode, encode, payload_of
from pipeline.federation.plan import Plan, kind_of, plan_of
from pipeline.federation.state import State
from pipeline.federation.training import pick_plan_backend, to_device
from pipeline.flower.answer import Answer, Client
from pipeline.flower.records import USES, Ask
from pipeline.flower.run_config import refuse_what_cannot_travel
from pipeline.flower.sums import head_of_site, of_site
from pipeline.machine import threads
from pipeline.settings import RunConfig

KEPT = ("first_moment", "second_moment", "steps")
Kept = dict[str, dict[str, Tensor]]
"""By client, what it carries from round to round: its optimizer's moments where they are kept."""


@dataclass(frozen=True)
class Site:
    """What a site's owner says of it; no server can change it.

    cache    the cache file;    domain  which of its domains takes part; None: all of them
    client   which client of a partition; None: all;    device, backend  as of federate
    part     (k, n) of Flower's simulation: every n-th client from k on, of those named; None: all
    """

    cache: Path
    domain: str | None = None
    client: str | None = None
    device: str = "auto"
    backend: str = "auto"
    part: tuple[int, int] | None = None


def answer(site: Site, config: RunConfig, ask: Ask, kept: Kept) -> tuple[Answer, Kept]:
    """The site's part of a round: counts with the adapter received, and its clients' training.

    config   the run's settings;    kept  what the last answer returned; {} at first
    The same seed gives the row orders and bits that the clients have in a run on one machine.

    Raises CacheError and StaleCache for a cache that is damaged or not what is demanded,
    ConfigError for clients that cannot be, BackendUnavailable.
    """
    refuse_what_cannot_travel(config)
    table = _read(site.cache, _stamp(site.cache))
    if ask.demand:
        refuse_other(table, ask.demand)
    clients = _clients(table, config, site, ask.domains)
    facts = _facts(table)
    told = {client.name: _stated(table, client) for client in clients}
    if not ask.domains or ask.adapter is None:
        text = torch.from_numpy(np.array(table.text_features))
        return Answer(facts, _clients_of(told), {}, text, ask.round, ask.nonce), kept
    plan = plan_of(
        config, kind_of(table, config), len(ask.domains), [(config.held_out[0], tuple(clients), ())]
    )
    _check_numbers(plan.work.kind, ask)
    on = pick_device(site.device)
    backend = pick_plan_backend(plan, site.backend, on)
    cached = _loaded(site.cache, _stamp(site.cache), on)
    if ask.metric is not None:
        head = head_of_site(plan.folds[0], cached, ask.metric)
        plan = replace(plan, folds=(replace(plan.folds[0], closed_form=head),))
    engine = Engine(plan, cached, backend)
    with threads(on, table.features.shape[1], backend):
        row = _received(engine, config, ask.adapter)
        _count_right(engine, row, told)
        if ask.round == 0:
            _count_right(engine, None, told)
        if config.choose == "loss":
            (losses,) = validation_losses(engine.plan, row[None], engine.cached, [0])
            _add_losses("val_loss", losses, told)
        solved = of_site(config, engine.cached, clients, ask) if ask.solve else {}
        updates, losses, kept = _trained(engine, config, ask, row, kept)
    _add_losses("loss", losses, told)
    facts = {"content_sha256": facts["content_sha256"]}
    clients_told = _clients_of(told)
    return Answer(facts, clients_told, updates, None, ask.round, ask.nonce, solved), kept


def site_of(node_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> Site:
    """The site that a node's configuration describes: cache, and the other fields of Site.

    A node of Flower's simulation has no cache of its own but a partition-id: it reads the run
    config's, and has every n-th of its clients.
    Raises ConfigError for one without a cache, or with a word that means nothing here.
    """
    own = dict(node_config)
    part = own.pop("partition-id", None), own.pop("num-partitions", None)
    known = [each.name for each in fields(Site) if each.name != "part"]
    if strange := [name for name in own if name not in known]:
        raise ConfigError(f"node config {strange[0]!r} is unknown; there is {', '.join(known)}")
    numbers = None if None in part else (int(part[0]), int(part[1]))
    if numbers is not None:
        named = ("cache", "device", "backend")
        own = {name: run_config[name] for name in named if run_config.get(name)} | own
    if not own.get("cache"):
        simulated = "a simulation needs --run-config \"cache='FILE'\""
        raise ConfigError(simulated if numbers else "this node's config names no cache")
    cache = Path(str(own.pop("cache")))
    return Site(cache, **{n: str(v) for n, v in own.items()}, part=numbers)


def reason(cache: Path, error: Exception) -> str:
    """What a server is told of an error: its words without the folders of this machine."""
    return " ".join(str(error).replace(str(cache), cache.name).split())


def demand_of(table: FeatureTable) -> dict[str, Any]:
    """What other caches must have in common with this one for their adapters to mean the same.

    An extracted cache: the CLIP's weights, prompts, class names and preprocessing but for the
    versions of image libraries. An imported one does not tell: then its text features, exactly.
    """
    known = table.identity
    common = {
        "width": table.features.shape[1],
        "class_names": list(table.class_names),
        "logit_scale": float(table.logit_scale),
    }
    if known.get("weights_sha256") and known.get("templates"):
        steps = known.get("preprocessing") or {}
        return common | {
            "weights_sha256": known["weights_sha256"],
            "templates": list(known["templates"]),
            "preprocessing": {n: v for n, v in steps.items() if n not in DECODERS},
            **towers_fact(known.get("architecture")),
        }
    return common | {"text_features_sha256": hashlib.sha256(table.text_features).hexdigest()}


def refuse_other(table: FeatureTable, demand: dict[str, Any]) -> None:
    """Raises StaleCache naming the first field in which a cache is not what a server demands."""
    way_out = "its features mean something else; extract them as the other sites did"
    compare_identity(demand, demand_of(table), table.source, way_out)


def _clients(
    table: FeatureTable, config: RunConfig, site: Site, domains: Sequence[str]
) -> list[ClientSplit]:
    """The site's clients, with the numbers that their domains have among all of `domains`."""
    present = np.unique(table.domains)
    own = [table.domain_names[d] for d in present]
    if site.domain is not None and site.domain not in own:
        raise ConfigError(f"{table.source}: no domain {site.domain!r}; it has {', '.join(own)}")
    mine = [n for n in own if n not in config.held_out[0] and site.domain in (None, n)]
    if not mine:
        raise ConfigError(f"{table.source}: all of its domains ({', '.join(own)}) are held out")
    if domains:
        if strange := [name for name in mine if name not in domains]:
            raise ConfigError(f"{table.source}: the run began without domain {strange[0]!r}")
        number = [domains.index(n) if n in domains else -1 for n in table.domain_names]
        places = np.array(number, np.int64)[table.domains]
        table = replace(table, domain_names=tuple(domains), domains=places)
    clients = [c for n in mine for c in split_domain(table, table.domain_names.index(n), config)]
    chosen = [client for client in clients if site.client in (None, client.name)]
    if not chosen:
        names = ", ".join(client.name for client in clients)
        raise ConfigError(f"{table.source}: no client {site.client!r}; there is {names}")
    if site.part is not None:
        k, n = site.part
        if k >= len(chosen):
            raise ConfigError(f"node {k} of {n} has no client: the run has {len(chosen)}")
        chosen = chosen[k::n]
    return chosen


def _stated(table: FeatureTable, client: ClientSplit) -> dict[str, Any]:
    name = client.domain_name
    of = int((table.domains == table.domain_names.index(name)).sum())
    rows = {use: len(getattr(client, use)) for use in USES}
    return {"domain": name, "domain_rows": of, **rows, "loss": None, "val_loss": None}


def _clients_of(told: Mapping[str, dict[str, Any]]) -> dict[str, Client]:
    """Unchecked: a server checks them, and says what is wrong."""
    return {name: Client.model_construct(**fields) for name, fields in told.items()}


def _add_losses(name: str, losses: Mapping[str, float], told: Mapping[str, dict]) -> None:
    """Those that are finite: JSON has no NaN, and an update of such a loss is left out by name."""
    for client, loss in losses.items():
        told[client][name] = loss if math.isfinite(loss) else None


def _facts(table: FeatureTable) -> dict[str, Any]:
    return {
        "demand": demand_of(table),
        "preprocessing": table.identity.get("preprocessing"),
        "dataset": table.identity.get("dataset"),
        "model": table.identity.get("model"),
        "content_sha256": table.content_sha256,
    }


def _stamp(cache: Path) -> tuple[int, int]:
    """Changes with the file; a missing one is read_table's to report."""
    try:
        found = cache.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=1)  # a worker of Flower's simulation answers for many nodes
def _read(cache: Path, stamp: tuple[int, int]) -> FeatureTable:
    return read_table(cache)


@functools.lru_cache(maxsize=1)
def _loaded(cache: Path, stamp: tuple[int, int], device: torch.device) -> Cached:
    return to_device(_read(cache, stamp), device)


def _check_numbers(kind: Kind, ask: Ask) -> None:
    assert ask.adapter is not None
    for numbers in (ask.adapter.numbers, *ask.shifts.values()):
        if len(numbers) != size(kind):
            raise ConfigError(
                f"an adapter of {len(numbers):,} numbers came; with these settings and this cache "
                f"it has {size(kind):,}"
            )


def _received(engine: Engine, config: RunConfig, sent: Encoded) -> Tensor:
    """The server's adapter (P,), on the device; of fp16 and int8 the first one is drawn again."""
    kind, text = engine.plan.work.kind, engine.cached.text
    row = decode(sent)
    if payload_of(config) != "fp32":
        row = first_row(kind, config.start, config.seed, text) + row
    return row.to(text.device)


def _count_right(engine: Engine, row: Tensor | None, told: Mapping[str, dict]) -> None:
    """Adds right answers by use to what is told of each client; row None: CLIP's, unadapted."""
    plan, cached, fold = engine.plan, engine.cached, engine.plan.folds[0]
    uses = ("val", "test", "train") if fold.config.eval == "every" else ("val", "test")
    plain = zero_shot_top1(cached) if row is None else None
    for use in uses:
        for client in fold.clients:
            rows = rows_of([client], use, cached.labels.device)
            if plain is not None:
                top = plain[rows]
            else:
                top = answers_of(plan, row[None], cached, [0], [rows], engine.backend)[0]
            name = f"{'right' if plain is None else 'zero_shot'}_{use}"
            told[client.name][name] = int((top == cached.labels[rows]).sum())


def _trained(
    engine: Engine, config: RunConfig, ask: Ask, row: Tensor, kept: Kept
) -> tuple[dict[str, Encoded], dict[str, float], Kept]:
    """By client: what it sends, the sum of its losses; and what it keeps."""
    plan = engine.plan
    names = [plan.folds[0].clients[lane.client].name for lane in plan.lanes]
    steps = steps_of_lanes(plan, np.array([ask.work.get(name, 0.0) for name in names]))
    after, trained = train_lanes(_state(plan, ask, row, names, kept), engine, ask.round, steps)
    sent = trained.clients if config.payload == "fp32" else trained.clients - trained.start
    sums = trained.losses.sum(dim=0).cpu().tolist()
    updates, losses = {}, {}
    for column, at in enumerate(trained.lanes):
        updates[names[at]] = encode(sent[column].cpu(), config.payload)
        losses[names[at]] = sums[column]
        if config.moments == "kept":
            kept = {**kept, names[at]: {name: after[name][at].cpu() for name in KEPT}}
    return updates, losses, kept


def _state(plan: Plan, ask: Ask, row: Tensor, names: Sequence[str], kept: Kept) -> State:
    state: State = {"server": row[None]}
    none = torch.zeros_like(row)
    if plan.method.controls:
        shifts = [ask.shifts.get(name, none).to(row.device) for name in names]
        # What is added to a gradient is control - controls; the server sends the difference.
        state |= {"control": none[None], "controls": -torch.stack(shifts)}
    if plan.folds[0].config.moments == "kept":
        fresh = {"first_moment": none, "second_moment": none, "steps": torch.tensor(0)}
        for name in KEPT:
            rows = [kept.get(client, fresh)[name] for client in names]
            state[name] = torch.stack(rows).to("cpu" if name == "steps" else row.device)
    return state
