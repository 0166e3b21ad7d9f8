"""The GPU check itself: what it keeps when stages fail or hang, and stages on a pretended GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.gpu_check import __main__ as check
from tests.conftest import ROOT
from tests.packages import need

PATIENT = 120.0
CODE = {
    "good": "print('{\"summary\": \"fast\"}')",
    "noisy": "print('a warning'); print('{\"summary\": \"heard\"}'); print('[1]')",
    "fails": "print('{\"n\": 1}', flush=True); raise SystemExit('no such kernel')",
    "dies": "import os; print('{\"n\": 2}', flush=True); os.kill(os.getpid(), 11)",
    "hangs": "import time; print('{\"n\": 3}', flush=True); time.sleep(1000)",
    "deaf": "import signal as s, time; s.signal(15, s.SIG_IGN); print('{\"n\": 4}', flush=True)"
            "\ntime.sleep(1000)",
    "forks": "import subprocess, sys; print('{\"n\": 5}', flush=True)"
             "\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)'])",
}  # fmt: skip
ENDS = {"good": "ok", "noisy": "ok", "fails": "failed", "dies": "failed", "hangs": "timed out",
        "deaf": "timed out", "forks": "timed out"}  # fmt: skip


@pytest.mark.parametrize("kind", CODE)
def test_a_stage_ends_and_its_lines_are_kept(kind):
    kept = []
    limit = 5.0 if ENDS[kind] == "timed out" else PATIENT
    record = check.run_stage(kind, [sys.executable, "-c", CODE[kind]], limit, kept.append)
    assert record.status == ENDS[kind] and record.lines == kept
    assert len(kept) == 1 and kept[0]["stage"] == kind
    assert record.seconds < limit + 3 * check.GRACE
    assert (record.stderr[-1:] == ["no such kernel"]) == (kind == "fails")


def test_every_stage_runs_whatever_the_others_do(tmp_path, monkeypatch, capsys):
    stages = [check.Stage(kind, 4 if ENDS[kind] == "timed out" else PATIENT, 0, "a test")
              for kind in ("fails", "hangs", "good")]  # fmt: skip
    monkeypatch.setattr(check, "STAGES", stages)
    monkeypatch.setattr(check, "PATIENCE", 1)
    monkeypatch.setattr(check, "command", lambda name, _: [sys.executable, "-c", CODE[name]])
    file = tmp_path / "new" / "check.jsonl"
    assert check.main(["--pretend", "--out", str(file)]) == 1
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    statuses = {line["stage"]: line["status"] for line in lines if "status" in line}
    assert statuses == {"fails": "failed", "hangs": "timed out", "good": "ok"}
    assert [line["n"] for line in lines if "n" in line] == [1, 3]
    said = capsys.readouterr().out
    assert "| timed out |" in said and "no such kernel" in said and "fast" in said
    monkeypatch.setattr(check, "STAGES", stages[2:])
    assert check.main(["--pretend", "--out", str(file)]) == 0
    assert len(file.read_text("utf-8").splitlines()) == len(lines) + 2  # appended


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 5
    assert "sees no CUDA device" in capsys.readouterr().err


def test_a_killed_check_takes_its_stage_with_it(tmp_path):
    sleeper = f"import time; time.sleep(999)  # {tmp_path}"
    code = (
        "import signal, sys; from benchmarks.gpu_check import __main__ as check; "
        f"check.command = lambda *_: [sys.executable, '-c', {sleeper!r}]; "
        "signal.signal(15, lambda *_: sys.exit(143)); sys.exit(check.main(sys.argv[1:]))"
    )
    words = ["--pretend", "--stage", "versions", "--out", str(tmp_path / "a.jsonl")]

    def alive() -> bool:
        # -ww: lines are cut to 80 columns otherwise
        words = ["ps", "-wweo", "pid,args"]
        found = subprocess.run(words, capture_output=True, text=True).stdout
        return any(f"# {tmp_path}" in line and "check.command" not in line
                   for line in found.splitlines())  # fmt: skip

    def becomes(wanted: bool) -> bool:
        ends = time.monotonic() + PATIENT
        while alive() != wanted and time.monotonic() < ends:
            time.sleep(0.1)
        return alive() == wanted

    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr.readline().startswith("versions")
        assert becomes(True)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENT) == 143
        assert becomes(False)  # a killed process may be listed for a moment


def test_limits_keep_what_the_help_promises():
    assert sum(stage.full for stage in check.STAGES) < 9 * 60
    assert sum(stage.quick for stage in check.STAGES) < 3 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real one: ./run.sh gpu-check")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: apt install g++")
def test_stages_run_on_a_pretended_device(tmp_path):
    """Two of them; all others: ./run.sh gpu-check --pretend."""
    need("triton")
    file = tmp_path / "check.jsonl"
    words = [
        "gpu-check",
        "--pretend",
        "--stage",
        "versions",
        "--stage",
        "round",
        "--out",
        str(file),
    ]
    done = subprocess.run(
        ["bash", str(ROOT / "run.sh"), *words], capture_output=True, text=True,
        env={**os.environ, "FEDCLIP_PYTHON": sys.executable},
    )  # fmt: skip
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert done.returncode == 0, [line for line in lines if line.get("status") != "ok"]
    assert {line["stage"] for line in lines if line.get("status") == "ok"} == {"versions", "round"}
    assert "replay" in done.stdout and "saved to" in done.stdout
