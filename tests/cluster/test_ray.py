"""A Ray cluster of three workers gives what one process does, whoever of them dies or joins."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time

import click
import pytest

from tests.packages import need
from tests.runs.small_runs import stored

need("ray")

from pipeline.cli.app import cli  # noqa: E402
from pipeline.cli.options import connection  # noqa: E402
from pipeline.cluster import extract as ray_extract  # noqa: E402
from pipeline.cluster import sweep as driver  # noqa: E402
from pipeline.cluster.actor import Worker, pieces_of  # noqa: E402
from pipeline.cluster.connect import Node, Size, connected, parse_size, ray  # noqa: E402
from pipeline.cluster.sweep import Hand, OnRay, RayPool  # noqa: E402
from pipeline.errors import ConfigError, Interrupted, WeightsError  # noqa: E402
from pipeline.extraction.extract import extract  # noqa: E402
from pipeline.settings import RunConfig  # noqa: E402
from pipeline.sweeps.context import Steps, plan_trial  # noqa: E402
from pipeline.sweeps.halving import Halving  # noqa: E402
from pipeline.sweeps.run import sweep  # noqa: E402
from pipeline.sweeps.search import listed_trials  # noqa: E402
from pipeline.sweeps.space import Range  # noqa: E402
from pipeline.sweeps.spec import SweepSpec, from_options  # noqa: E402
from tests.cluster.clusters import Watched, add, busy, cluster_of, ended, slow  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.extraction.extraction import draw_tree  # noqa: E402

BASE = RunConfig(held_out=(("a",), ("b",)), rounds=6, batch=8)
GRID = ("lr=1e-3,1e-2,3e-2", "head=attention,low-rank", "method=fedavg,ditto,zero-shot")
RATE = (("lr", Range(1e-4, 1e-1, log=True)),)
SPECS = {
    "grid": from_options(GRID),
    "halving": from_options(GRID, halving=2, seeds=2),
    "random": from_options(["lr=1e-4..1e-1"], draws=9, seeds=2),
    "bayes": SweepSpec("bayes", RATE, (0, 1), 8),
    "bayes cut": SweepSpec("bayes", RATE, (0,), 12, Halving(2, 2, 1)),
    "kept moments": from_options(
        ["moments=kept", "lr=1e-3,1e-2,3e-2", "method=fedavgm,scaffold", "optimizer=sgd"],
        halving=2,
    ),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2, 1) as made:
        yield made


@pytest.fixture(scope="module")
def kept(cluster):
    """Three workers that several tests train on."""
    watched = Watched(kept=True)
    yield watched
    if watched.pool is not None:
        watched.pool.close()


def run(table, out, spec, pool=None, **options):
    return sweep(table, spec, BASE, runs=out, out=out, device="cpu", pool=pool, memory=0, **options)


@pytest.mark.parametrize("name", SPECS)
def test_the_lines_are_those_of_one_process(table, tmp_path, kept, name):
    if "bayes" in name:
        need("optuna")
    told = [run(table, tmp_path / place, SPECS[name], pool)
            for place, pool in (("one", None), ("ray", kept))]  # fmt: skip
    assert ended(tmp_path / "ray") == ended(tmp_path / "one")
    ids = [line["id"] for line in ended(tmp_path / "ray")]
    assert len(set(ids)) == len(ids) == sum(told[1]["trials"].values())
    assert told[0]["best"] == told[1]["best"] and told[1]["lane_steps"] == told[0]["lane_steps"]
    if "halving" in name or "cut" in name:
        assert told[1]["trials"]["pruned"]
    before = (tmp_path / "ray" / "trials.jsonl").read_bytes()
    run(table, tmp_path / "ray", SPECS[name])  # here or there: it is the same sweep
    assert (tmp_path / "ray" / "trials.jsonl").read_bytes() == before


def test_a_budget_and_a_signal_stop_it_and_the_same_command_resumes(table, tmp_path, kept, heard):
    run(table, tmp_path / "one", SPECS["grid"])
    out = tmp_path / "ray"
    run(table, out, SPECS["grid"], kept, budget=0.0)
    assert "trials are left; run the same command to resume" in heard[-1]

    def interrupt(pool):
        if (out / "trials.jsonl").stat().st_size:
            os.kill(os.getpid(), signal.SIGINT)
            kept._act = lambda pool: None

    kept._act = interrupt
    with pytest.raises(Interrupted, match="finished trials are saved") as stopped:
        run(table, out, SPECS["grid"], kept)
    assert stopped.value.exit_code == 130
    assert 0 < len(ended(out)) < 18
    run(table, out, SPECS["grid"], kept)
    assert ended(out) == ended(tmp_path / "one")


def test_workers_and_nodes_die_in_mid_rung_and_others_join(
    table, tmp_path, cluster, kept, monkeypatch, heard
):
    """No worker sees the cache's path: it travels. Then a worker and a node die, a node joins,
    and a worker dies with trials that have a state of an earlier rung."""
    if kept.pool is not None:
        kept.pool.close()
    monkeypatch.setattr(driver, "Worker", slow(Worker, str(tmp_path / "go")))
    monkeypatch.setattr("pipeline.cluster.actor.BLOCK", 10_000)
    far = dataclasses.replace(table, source="/there/is/no/such/cache.h5")
    nodes, done = {"lost": add(cluster, 1)}, []

    def harm(pool):
        if not done and len(busy(pool)) == 4:
            ours = next(h for h in busy(pool) if h.node.id != nodes["lost"].node_id)
            os.kill(ours.facts.process, signal.SIGKILL)
            cluster.remove_node(nodes["lost"], allow_graceful=False)
            nodes["late"] = add(cluster, 1)
            done.append("worker and node")
        elif len(done) == 1 and nodes["late"].node_id in {h.node.id for h in busy(pool)}:
            (tmp_path / "go").touch()
            done.append("late")
        elif len(done) == 2:
            for hand in busy(pool):
                if pool._states.keys() & hand.batch.keys():
                    os.kill(hand.facts.process, signal.SIGKILL)
                    done.append("worker of a later rung")
                    return

    run(table, tmp_path / "one", SPECS["halving"])
    try:
        run(far, tmp_path / "ray", SPECS["halving"], Watched(harm))
    finally:
        cluster.remove_node(nodes["late"])
    assert len(done) == 3 and ended(tmp_path / "ray") == ended(tmp_path / "one")
    assert sum("was lost" in line for line in heard) >= 3
    assert sum("sending it" in line for line in heard) == 1


def test_a_killed_driver_resumes_and_two_on_one_folder_are_refused(table, tmp_path, cluster, kept):
    out, log = tmp_path / "s", tmp_path / "s" / "trials.jsonl"
    command = [
        sys.executable, "-m", "pipeline", "sweep", table.source, "--grid", "lr=1e-3,1e-2,3e-2",
        "--grid", "head=attention,low-rank", "--grid", "method=fedavg,ditto,zero-shot",
        "--rounds", "6", "--batch", "8", "--held-out", "a", "--held-out", "b", "--memory", "0",
        "--out", str(out), "--ray", cluster.address, "--ray-worker", "cpus=2", "--json",
    ]  # fmt: skip
    if kept.pool is not None:
        kept.pool.close()  # the driver's workers take their places
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + 300
        while not (log.exists() and log.stat().st_size):
            assert time.monotonic() < until and child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="another process is sweeping in this folder"):
            run(table, out, SPECS["grid"], kept)
        child.kill()
        child.communicate(timeout=60)
    assert 0 < log.read_bytes().count(b"\n") < 18
    run(table, out, SPECS["grid"])
    run(table, tmp_path / "one", SPECS["grid"])
    assert ended(out) == ended(tmp_path / "one")


def test_what_the_cluster_has_not_is_refused_by_name(cluster):
    with pytest.raises(
        ConfigError, match=r"--ray-worker cpus=512: no node .* resources; .* 2 CPUs"
    ):
        OnRay(Size(cpus=512), "auto")
    with pytest.raises(ConfigError, match="0 GPUs"):
        OnRay(Size(gpus=1), "auto")
    with pytest.raises(ConfigError, match="--device cuda"):
        OnRay(Size(cpus=1), "cuda")


def test_an_address_of_ray_client_is_refused(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="Ray Client"), connected("ray://far:10001"):
        pass


def test_without_ray_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pipeline.cluster.connect")
    with pytest.raises(ConfigError, match=r"pip install -r requirements-ray\.txt"):
        importlib.import_module("pipeline.cluster.connect")


def test_options_that_need_each_other_or_exclude_each_other():
    with pytest.raises(ConfigError, match="pass --ray as well"), connection(None, "cpus=1"):
        pass
    with pytest.raises(ConfigError, match="--ray-worker '1'"), connection("local", "1"):
        pass
    words = ["extract", "--ray", "local", "--shard", "1/2"]
    with pytest.raises(click.ClickException, match="leave out --shard"):
        cli.main(words, standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "size"),
    [(None, Size()), ("", Size()), ("cpus=2", Size(2)), ("gpus=0.5", Size(None, 0.5)),
     ("gpus=1, cpus=4", Size(4, 1)), ("cpus=0,gpus=1", Size(0, 1))],
)  # fmt: skip
def test_sizes_of_workers(words, size):
    assert parse_size(words) == size


@pytest.mark.parametrize(
    "words", ["2", "cpus", "cpus=", "cpus=-1", "cpus=1,cpus=2", "ram=4", "cpus=0", "cpus=nan"]
)
def test_other_words_are_no_size(words):
    with pytest.raises(ConfigError, match="--ray-worker"):
        parse_size(words)


def test_the_cache_travels_in_blocks(table, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.cluster.actor.BLOCK", 3 * table.features[0].nbytes)
    pieces = list(pieces_of(table))
    assert len(pieces) == 1 + -(-len(table.features) // 3)
    job = driver.Job(BASE, "cpu", "auto", table.source, table.content_sha256)
    there, far, other = Worker(job), Worker(job._replace(file="/no/such")), Worker(
        job._replace(content_sha256="0")
    )  # fmt: skip
    assert there.open() and not far.open() and not other.open()
    far.receive(*pieces)
    trial = driver_trial(table)
    said = [[e for answer in w.train(None, [trial], None) for e in answer] for w in (there, far)]
    assert [e.results for s in said for e in s if not isinstance(e, Steps)][0]
    first, second = ([dataclasses.replace(e, seconds=0) for e in s if not isinstance(e, Steps)]
                     for s in said)  # fmt: skip
    assert first == second


def driver_trial(table):
    return driver.Dealt(listed_trials(SPECS["grid"], BASE)[0], 0.0, None, None)


def test_a_trial_that_costs_worker_after_worker_fails(table):
    pool = RayPool(
        driver.Job(BASE, "cpu", "auto", table.source, table.content_sha256), Size(1), 0, table
    )
    trials = listed_trials(SPECS["grid"], BASE)
    live = [plan_trial(each, BASE, table, pool._device, "auto") for each in trials[:2]]
    lost = ray.exceptions.ActorDiedError()
    for turn in range(driver.LIVES):
        pool._waiting = []
        hand = Hand(None, Node("n", "here", 1, 1, 0), None, "work",
                    facts=driver.Facts("numba", (), 0, 0),
                    batch={e.trial.id: e for e in live[: 1 + (turn == 0)]})  # fmt: skip
        pool._hands.append(hand)
        told = list(pool._lose(hand, lost))
    assert [each.status for each in told] == ["failed"] and "3 workers were lost" in told[0].error
    assert told[0].id == trials[0].id and not pool._left()


def test_shards_on_ray_are_merged_into_the_bytes_of_one_extraction(
    tmp_path, cluster, weights, kept, monkeypatch, heard
):
    """One worker dies with its shard, a shard is there from a killed call, one is encoded."""
    if kept.pool is not None:
        kept.pool.close()
    tree, died = draw_tree(tmp_path), tmp_path / "died"
    asked = {"model": str(weights), "templates": ("a {}",), "device": "cpu", "batch": 4,
             "workers": 0, "force": False, "accept": ()}  # fmt: skip
    extract(tree, out=tmp_path / "one.h5", **asked)
    extract(tree, out=tmp_path / "ray.h5", shard="2/3", **asked)
    real = ray_extract.encoded_shard

    def dies(*words):
        for block in real(*words):
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield block

    monkeypatch.setattr(ray_extract, "encoded_shard", dies)
    monkeypatch.setattr(ray_extract, "BLOCK", 1000)
    report = ray_extract.extract_on_ray(str(tree), Size(cpus=1), out=tmp_path / "ray.h5", **asked)
    assert died.exists() and "encoding 2 of 3 shards on the Ray cluster" in heard
    assert (tmp_path / "ray.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
    assert (report.rows, report.unreadable) == (23, 0) and 0 < report.encoded < 23
    assert report.encoded + report.resumed == 23
    assert not list(tmp_path.glob("*.shard-*")) + list(tmp_path.glob("*.tmp"))
    with pytest.raises(WeightsError):  # what a task meets is what the command says
        bad = tmp_path / "bad.pt"
        bad.write_bytes(b"x")
        ray_extract.extract_on_ray(
            str(tree), Size(cpus=1), out=tmp_path / "bad.h5", **asked | {"model": str(bad)}
        )
