"""What --dry-run shows: every row once, the steps that training takes, and nothing trained."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.store import write_table
from pipeline.federation.plan import build_plan
from pipeline.reports.partition import DRAWN, partition_html
from pipeline.runs.federate import doubts
from pipeline.runs.outcomes import bytes_a_round
from pipeline.runs.partition import (
    SHOWN,
    USES,
    duration,
    expected_seconds,
    look,
    record_of,
    size,
    text_of,
)
from tests.cli.commands import call
from tests.reports.report_folders import HOSTILE
from tests.reports.report_pages import harmless
from tests.runs.small_runs import config, small

CPU = torch.device("cpu")


def looked(table, chosen, timed=False):
    plan = build_plan(table, chosen)
    notes = list(doubts(table, plan, None))
    return plan, look(table, plan, "torch", CPU, notes, dataset="small", timed=timed)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["domain", "iid", "dirichlet", "pathological", "quantity"]),
    clients=st.integers(1, 5),
    method=st.sampled_from(["fedavg", "local", "ditto", "central", "zero-shot", "closed-form"]),
    held_out=st.sampled_from([((),), (("sketch",),), (("photo",), ("sketch",))]),
    seed=st.integers(0, 3),
)
def test_every_row_is_shown_once_with_its_class(kind, clients, method, held_out, seed):
    table = small()
    held_out = tuple(tuple(table.domain_names[len(n) % 3] for n in fold) for fold in held_out)
    plan, found = looked(table, config(
        partition=kind, clients=1 if kind == "domain" else clients, method=method,
        held_out=held_out, seed=seed, classes_per_client=4,
    ))  # fmt: skip
    parts = {c.name: c for fold in plan.folds for c in fold.clients}
    order = sorted(parts.values(), key=lambda each: (each.domain, each.stream))
    assert [c.name for c in found.clients] == [each.name for each in order]
    for client in found.clients:
        own = parts[client.name]
        rows = np.concatenate([getattr(own, use) for use in USES])
        assert client.rows == {use: len(getattr(own, use)) for use in USES}
        assert (client.classes == np.bincount(table.labels[rows], minlength=4)).all()
    assert found.steps == plan.steps.sum()
    sent = [bytes_a_round(plan, fold, None)["up"] for fold in plan.folds]
    if plan.method.solved:  # n, S and the upper half of G, in float64
        classes, width = 4, table.features.shape[1]
        numbers = classes + classes * width + width * (width + 1) // 2
        sent = [8 * numbers * len(fold.clients) for fold in plan.folds]
    assert found.up == int(found.rounds * sum(sent))
    text = text_of(found)
    assert all(client.name in text for client in found.clients)
    json.dumps(record_of(found))
    harmless(partition_html(found, "./run.sh federate"))


def test_many_clients_and_classes_stay_readable():
    table = small(classes=90)
    one = looked(table, config(held_out=((),)))[1].clients[0]
    _, found = looked(table, config(held_out=((),)))
    many = found.__class__(**{**vars(found), "clients": (one,) * (DRAWN + 7)})
    text = text_of(many).splitlines()
    assert len(text) < SHOWN + 9 and max(map(len, text[: SHOWN + 2])) < 130
    assert f"and {DRAWN + 7 - SHOWN} more clients" in text_of(many)
    html = partition_html(many).decode()
    assert html.count("<tr>") == DRAWN + 1 and "7 more clients" in html and len(html) < 1_000_000


def test_the_time_is_of_all_rounds_and_changes_nothing():
    table = small()
    plan, found = looked(table, config(rounds=3), timed=True)
    assert found.seconds is not None and 0 <= found.seconds < 60
    assert expected_seconds(table, build_plan(table, config(rounds=300)), "torch", CPU) >= 0
    assert looked(table, config(method="zero-shot"), timed=True)[1].seconds is None
    assert plan.steps.sum() == build_plan(table, config(rounds=3)).steps.sum()


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"),
                                             (999_600, "1 MB"), (10**18, "1e+06 TB")])  # fmt: skip
def test_sizes(count, said):
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "about 1 s"), (89.6, "about 90 s"), (300, "about 5 minutes"), (7200, "about 2.0 hours")],
)
def test_times(seconds, said):
    assert duration(seconds) == said


def test_a_dry_run_writes_its_page_alone_and_the_run_is_not_changed_by_it(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    table = replace(small(), domain_names=HOSTILE[:3], class_names=HOSTILE)
    write_table("c.h5", table)
    words = ["federate", "c.h5", "--rounds", "2", "--device", "cpu", "--partition", "iid",
             "--clients", "2"]  # fmt: skip
    done = call(*words, "--dry-run", "--out", "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["partition.html"]
    assert done.stdout.splitlines()[-1] == "run/partition.html" and "expected time" in done.stdout
    harmless((tmp_path / "run" / "partition.html").read_bytes())
    call(*words, "--out", "plain")
    call(*words, "--out", "run")
    for name in ("config.json", "rounds.jsonl", "adapter.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    said = call(*words, "--dry-run", "--out", "run", "--json")
    found = json.loads(said.stdout)
    assert sum(c[use] for c in found["clients"] for use in USES) == len(table.labels)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"held_out": ((),), "partition": "pathological", "clients": 2, "classes_per_client": 9},
         "9 classes per client requested"),
        ({"held_out": (("a", "b"),)}, "is the only client"),
        ({"held_out": ((),), "partition": "quantity", "clients": 9, "alpha": 0.01}, "rows"),
    ],
)  # fmt: skip
def test_what_is_odd_is_said_on_the_page_and_before(chosen, said):
    from dataclasses import replace

    table = replace(small(), domain_names=("a", "b", "c"))
    _, found = looked(table, config(**chosen))
    assert any(said in note for note in found.notes)
    assert said in partition_html(found).decode()
