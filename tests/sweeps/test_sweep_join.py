"""Sweeps shared by processes: each trial once, the numbers of one process, deaths taken over."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache.store import read_table, write_table
from cache.table import CacheError, StaleCache
from kernels.backends import BackendUnavailable
from pipeline.digests import unsealed
from pipeline.errors import ConfigError
from pipeline.federation import training
from pipeline.settings import RunConfig
from pipeline.sweeps import claims as claiming
from pipeline.sweeps import join as sweep_join
from pipeline.sweeps.claims import Claims
from pipeline.sweeps.join import join
from pipeline.sweeps.run import sweep
from pipeline.sweeps.space import Choices, Normal, Range, Steps
from pipeline.sweeps.spec import SweepSpec, describe, from_options, read_description
from pipeline.sweeps.trials import read_all
from tests.conftest import ROOT
from tests.runs.small_runs import small

BASE = RunConfig(held_out=(("a",), ("b",)), rounds=6, batch=8)
GRID = ("lr=1e-3,1e-2,3e-2", "head=attention,low-rank", "method=fedavg,ditto")  # 12 trials
RATE = (("lr", Range(1e-4, 1e-1, log=True)),)

# Waits for the others, so that nobody finds everything done because importing took it longer.
MEMBER = """
import json, os, signal, sys, time
from importlib import import_module
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cache.store import read_table
from pipeline.sweeps import claims
from pipeline.sweeps.join import join
from pipeline.sweeps.run import sweep
from tests.sweeps.test_sweep_join import BASE, spec_of
training = import_module("pipeline.federation.training")
folder, file, method, number, members, dies = Path(sys.argv[2]), *sys.argv[3:]
claims.PATIENCE, claims.BEAT = 3.0, 0.2
plain, rounds = training.advance, [0]
def advance(engine, progress):
    rounds[0] += 1
    if rounds[0] == int(dies):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.03)
    return plain(engine, progress)
training.advance = advance
(folder.parent / f"ready-{number}").touch()
while len(list(folder.parent.glob("ready-*"))) < int(members):
    time.sleep(0.01)
if number == "1":
    found = sweep(read_table(Path(file)), spec_of(method), BASE, runs=folder, out=folder,
        device="cpu", memory=0, cache=("small.h5",))
else:
    while not (folder / "shared.json").exists():
        time.sleep(0.01)
    found = join(folder, memory=0)
del found["lane_steps"], found["lane_steps_a_second"], found["wall_seconds"]
print(json.dumps(found))
"""


def spec_of(method: str) -> SweepSpec:
    return from_options(GRID) if method == "grid" else SweepSpec("bayes", RATE, (0, 1), 8)


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "small.h5", small())
    return read_table(tmp_path / "small.h5")


def members(table, out, method: str, dies: tuple[int, ...]) -> list[subprocess.Popen]:
    """A process for each of `dies`; 0 lives, n is killed in its n-th round."""
    out.parent.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(ROOT), str(out), table.source, method, str(number),
             str(len(dies)), str(kill)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, kill in enumerate(dies, 1)
    ]  # fmt: skip


def ended(out: Path, name: str = "trials.jsonl") -> list[dict]:
    """The lines of a file of trials, less the seconds that each took."""
    lines = [unsealed(json.loads(line)) for line in (out / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def by_number(lines: list[dict]) -> str:
    return "\n".join(map(json.dumps, sorted(lines, key=lambda line: line["number"])))


@pytest.mark.parametrize(("method", "count"), [("grid", 2), ("grid", 3), ("bayes", 2)])
def test_members_train_each_trial_once_and_end_with_the_bytes_of_one(
    table, tmp_path, method, count
):
    if method == "bayes":
        pytest.importorskip("optuna", reason="bayes needs requirements-sweep.txt")
    out, trials = tmp_path / "shared" / "s", 12 if method == "grid" else 16
    children = members(table, out, method, (0,) * count)
    told = [child.communicate(timeout=200) for child in children]
    assert all(child.returncode == 0 for child in children), told
    sweep(table, spec_of(method), BASE, runs=tmp_path, out=tmp_path / "one", device="cpu")
    assert by_number(ended(out)) == by_number(ended(tmp_path / "one"))
    numbers = [line["number"] for line in ended(out)]
    assert numbers == list(range(trials))  # gathered: in order, each once
    own = {file.name: ended(out, file.name) for file in out.glob("trials-*.jsonl")}
    assert len(own) == count - 1 and all(own.values())  # every member trained some
    joined_ids = [line["id"] for lines in own.values() for line in lines]
    assert len(set(joined_ids)) == len(joined_ids) < trials
    reports = [json.loads(out_text) for out_text, _ in told]
    assert all(report == reports[0] for report in reports)
    assert not (out / "claims").exists() and not (out / "members").exists()


@pytest.mark.parametrize("first", [True, False])
def test_the_trials_of_a_killed_member_are_finished_by_the_others(table, tmp_path, first):
    out = tmp_path / "shared" / "s"
    children = members(table, out, "grid", (9, 0) if first else (0, 9))
    told = [child.communicate(timeout=200) for child in children]
    killed, alive = children if first else children[::-1]
    assert killed.returncode == -signal.SIGKILL and alive.returncode == 0, told
    sweep(table, spec_of("grid"), BASE, runs=tmp_path, out=tmp_path / "one", device="cpu")
    assert by_number(ended(out)) == by_number(ended(tmp_path / "one"))
    # The same command finds everything done, and what the dead one left is no hindrance.
    before = (out / "trials.jsonl").read_bytes()
    sweep(table, spec_of("grid"), BASE, runs=out, out=out, device="cpu", cache=("small.h5",))
    assert (out / "trials.jsonl").read_bytes() == before


def test_a_dead_member_of_another_machine_is_told_by_its_heartbeat(table, tmp_path, monkeypatch):
    monkeypatch.setattr(claiming, "PATIENCE", 1.0)
    out = tmp_path / "s"
    sweep(table, spec_of("grid"), BASE, runs=out, out=out, device="cpu", budget=0.0)
    far = Claims(out)
    far.name = "elsewhere-1-aaaa"
    far._beat = out / "members" / far.name
    far.begin()
    first = spec_of("grid")
    ids = [each.id for each in sweep_join.open_search(first, BASE, out, {}).ask(3)]
    assert far.take(ids) == ids
    began = time.monotonic()
    document = join(out)
    assert time.monotonic() - began >= 1.0 and document["trials"]["done"] == 12
    sweep(table, spec_of("grid"), BASE, runs=tmp_path, out=tmp_path / "one", device="cpu")
    assert by_number(ended(out)) == by_number(ended(tmp_path / "one"))


def test_who_was_taken_for_dead_adds_nothing_to_what_others_trained(table, tmp_path, monkeypatch):
    """A member that stands still in its last round, while another trains all, and goes on then."""
    out, inside = tmp_path / "s", []
    advance = training.advance

    def stand_still(engine, progress):
        if not inside and progress.rounds_done == 5:
            inside.append(1)
            monkeypatch.setattr(Claims, "_is_alive", lambda self, name: name == self.name)
            join(out)
            monkeypatch.undo()
        return advance(engine, progress)

    monkeypatch.setattr(training, "advance", stand_still)
    document = sweep(table, spec_of("grid"), BASE, runs=out, out=out, device="cpu", memory=0)
    assert inside and document["trials"]["done"] == 12
    sweep(table, spec_of("grid"), BASE, runs=tmp_path, out=tmp_path / "one", device="cpu")
    assert by_number(ended(out)) == by_number(ended(tmp_path / "one"))


def test_an_ended_sweep_is_told_as_such(table, tmp_path, heard):
    out = tmp_path / "s"
    first = sweep(table, spec_of("grid"), BASE, runs=out, out=out, device="cpu", cache=("x.h5",))
    before = (out / "trials.jsonl").read_bytes()
    heard.clear()
    found = join(out)
    assert heard[0] == f"{out}: all 12 trials have ended; there is nothing left to do"
    assert found["best"] == first["best"] and found["lane_steps"] == 0
    assert (out / "trials.jsonl").read_bytes() == before and not list(out.glob("trials-*"))


def test_a_trial_that_cannot_be_is_recorded_once(table, tmp_path):
    grid = ("partition=iid", "clients=2,1000")
    sweep(
        table, from_options(grid), BASE, runs=tmp_path, out=tmp_path / "s", device="cpu", budget=0
    )
    document = join(tmp_path / "s")
    assert (document["trials"]["done"], document["trials"]["failed"]) == (1, 1)
    assert len(ended(tmp_path / "s")) == 2
    again = join(tmp_path / "s")  # who joins tries no failed trial again; the first command does
    assert again["lane_steps"] == 0 and len(read_all(tmp_path / "s")) == 2


def command(*words) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "pipeline", "sweep", *map(str, words)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_what_cannot_be_joined_is_refused_by_name(table, tmp_path):
    out = tmp_path / "s"
    options = {"runs": out, "device": "cpu", "budget": 0.0}
    with pytest.raises(ConfigError, match="no sweep to join"):
        join(out)
    sweep(table, from_options(GRID, halving=2), BASE, out=out / "halving", **options)
    with pytest.raises(ConfigError, match="without --halving"):
        join(out / "halving")
    sweep(table, spec_of("grid"), BASE, out=out / "grid", **options)
    other = tmp_path / "other.h5"
    write_table(other, small(seed=1))
    with pytest.raises(StaleCache, match="content_sha256|fingerprint") as caught:
        join(out / "grid", cache=other)
    assert caught.value.exit_code == 3
    refused = command("--join", out / "grid", "--lr", "0.1")
    assert refused.returncode == 1 and "leave out --lr" in refused.stderr
    refused = command(other, "--join", out / "grid")
    assert refused.returncode == 3 and str(other) in refused.stderr
    moved = Path(table.source).rename(tmp_path / "moved.h5")
    with pytest.raises(CacheError, match="name where it"):
        join(out / "grid")
    shared = out / "grid" / "shared.json"
    content = json.loads(shared.read_text())
    shared.write_text(json.dumps(content | {"backend": "triton"}))
    with pytest.raises(BackendUnavailable, match="trained by triton"):
        join(out / "grid", cache=moved)
    for damaged in ("{", "[]", "{}", '{"cache": 1}'):
        shared.write_text(damaged)
        with pytest.raises(ConfigError, match="command again"):
            join(out / "grid", cache=moved)
    shared.write_text(json.dumps(content))
    done = command(moved, "--join", out / "grid", "--json", "--memory", "1M")
    assert done.returncode == 0 and json.loads(done.stdout)["trials"]["done"] == 12
    for damaged in ("{", "[]", "{}", '{"spec": 1, "base": 2, "cache": 3, "backend": "auto"}'):
        (out / "grid" / "spec.json").write_text(damaged)
        with pytest.raises((ConfigError, BackendUnavailable)):
            join(out / "grid", cache=moved)


def test_specs_are_read_as_they_were_described():
    ranges = (
        ("eps", Normal(1e-6, 1e-7)),
        ("lr", Range(1e-5, 1e-2, log=True)),
        ("rounds", Steps(1, 9, 2)),
        ("weight_decay", Choices((0.0, 0.2))),
    )
    for spec in (
        SweepSpec("random", ranges, (0, 4), 20, draw_seed=3),
        from_options(GRID, seeds=2),
        from_options(GRID, halving=3),
    ):
        again = read_description(json.loads(json.dumps(describe(spec))))
        assert again == spec and describe(again) == describe(spec)
