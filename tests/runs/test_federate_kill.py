"""Runs that are killed or get a signal go on where they were, and end with the same bytes."""

import json
import random
import signal
import subprocess
import sys
import time

from pipeline.runs.folder import read_adapters
from tests.conftest import ROOT, on_posix
from tests.runs.small_runs import FILES, figures, run

CHILD = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from cache.store import read_table
from pipeline.settings import RunConfig
from pipeline.runs.federate import federate
torch.set_num_threads(1)  # forked below: no thread pool may exist in the parent
table = read_table(Path(sys.argv[1]))
config = RunConfig(held_out=(("a",), ("b",), ("c",)), rounds=int(sys.argv[3]), batch=8, lr=1e-3)
def start():
    child = os.fork()
    if child == 0:
        federate(table, config, runs=Path(sys.argv[2]), out=Path(sys.argv[2]), device="cpu")
        os._exit(0)
    return child
draw = random.Random(0)
log = Path(sys.argv[2], "rounds.jsonl")
def size():
    return log.stat().st_size if log.exists() else 0
for _ in range(int(sys.argv[4])):
    child, before, line = start(), size(), draw.randint(0, 20)
    # At a chosen round and anywhere in it: by the clock alone a fast machine is done too early.
    while abs(size() - before) < 400 * line and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print("unfinished" if not Path(sys.argv[2], "done").exists() else "finished", flush=True)
sys.exit(os.waitpid(start(), 0)[1])
"""


def test_a_log_without_a_checkpoint_is_not_gone_on_with(table, tmp_path):
    run(table, tmp_path / "calm")
    run(table, tmp_path / "run")
    for name in ("done", "summary.json", "adapter.safetensors"):  # as a kill in round 0 leaves it
        (tmp_path / "run" / name).unlink()
    run(table, tmp_path / "run")
    for name in FILES:
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@on_posix("forks, and kills")
def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(tmp_path, table):
    rounds, kills = 500, 12

    def go(out, kills):
        command = [sys.executable, "-c", CHILD, table.source, str(out), str(rounds), str(kills)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    go(tmp_path / "calm", 0)
    assert go(tmp_path / "killed", kills) == "unfinished"  # else the last kills hit nothing
    for name in FILES:
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    summaries = [
        json.loads((tmp_path / n / "summary.json").read_text()) for n in ("calm", "killed")
    ]
    assert figures(summaries[0]) == figures(summaries[1])


@on_posix("sends signals")
def test_a_signal_finishes_the_round_and_says_how_to_go_on(tmp_path, table):
    command = [sys.executable, "-m", "pipeline", "federate", table.source, "--rounds", "100000",
               "--batch", "8", "--out", str(tmp_path / "run"), "--device", "cpu"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        log = tmp_path / "run" / "rounds.jsonl"
        waited = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") > random.randint(2, 9)):
            assert time.monotonic() < waited and child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        message = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + signal.SIGTERM
    assert (
        "Error" in message.splitlines()[-1]
        and "run the same command to resume" in message.splitlines()[-1]
    )
    _, facts = read_adapters(tmp_path / "run" / "adapter.safetensors")
    assert facts["rounds_done"] == log.read_bytes().count(b"\n")
