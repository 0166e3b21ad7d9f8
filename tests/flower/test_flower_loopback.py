"""A SuperLink and three SuperNodes over TLS on loopback: three rounds, then a site is killed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install -r requirements-dev.txt")

from cache.store import read_table, write_table  # noqa: E402
from pipeline.runs.federate import federate  # noqa: E402
from pipeline.runs.folder import read_adapters  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.flower import certificates  # noqa: E402
from tests.flower.sites import config, cut, lines  # noqa: E402
from tests.runs.small_runs import small  # noqa: E402

PATIENCE = 300  # seconds for what takes 25 on two idle cores
RECEIVING = "Receiving: train message"
FLOWER = [sys.executable, "-m", "pipeline", "flower"]
SETTINGS = ["--held-out", "d", "--batch", "8", "--lr", "1e-3", "--method", "fedavg"]

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Federation:
    """Programs, each with a log, a FLWR_HOME of its own, and a process group to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, {}
        self.at = f"127.0.0.1:{free_port()}"
        self.certificates = certificates.make(folder / "certificates")
        self.tls = ["--root-certificates", str(self.certificates / "ca.crt")]
        self.pace = 6.0  # seconds that a message takes here: to be measured

    def env(self, name: str) -> dict[str, str]:
        return {**os.environ, "FLWR_HOME": str(self.folder / f"home-{name}")}

    def start(self, name: str, *words: str) -> None:
        with self.log(name).open("wb") as log:
            self.programs[name] = subprocess.Popen(
                [*FLOWER, *words], env=self.env(name), cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait(self, name: str, text: str, times: int = 1) -> None:
        end = time.monotonic() + PATIENCE
        while self.log(name).read_text("utf-8", "replace").count(text) < times:
            assert time.monotonic() < end, f"{name} never said {text!r}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        tails = {name: self.log(name).read_text("utf-8", "replace") for name in self.programs}
        return "\n".join(f"== {name}\n{tail[-3000:]}" for name, tail in tails.items())

    def run(self, out: Path, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*FLOWER, "run", "--superlink", self.at, *self.tls, "--sites", "3",
             "--out", str(out), *SETTINGS, *words],
            env=self.env("run"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.programs[name].pid, signal.SIGKILL)
        self.programs[name].wait()

    def left(self) -> list[int]:
        """Processes of this federation: those whose FLWR_HOME lies in its folder."""
        mark, found = f"FLWR_HOME={self.folder}/".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flower")
    write_table(folder / "whole.h5", small(rows=(60, 45, 80, 30)))
    files = cut(read_table(folder / "whole.h5"), folder, ("a",), ("b",), ("c",), ("d",))
    made = Federation(folder)
    try:
        keys = ["--certificates", str(made.certificates)]
        made.start("link", "superlink", "--port", made.at.split(":")[1], *keys)
        made.wait("link", "Application startup complete")
        for name, file in zip("abc", files, strict=False):
            words = ["--superlink", made.at, *made.tls, "--backend", "torch"]
            made.start(name, "supernode", str(file), *words)
        yield made
    finally:
        for name in reversed(made.programs):
            made.kill(name)
        end = time.monotonic() + 20  # a SuperExec sees within seconds that its parent has gone
        while made.left() and time.monotonic() < end:
            time.sleep(0.2)
        left = made.left()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert not left, f"processes {left} outlived their SuperLink or SuperNode"


def ended(federation: Federation, run: subprocess.Popen) -> tuple[int, str]:
    try:
        _, said = run.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        said = run.communicate()[1]
        pytest.fail(f"the run did not end:\n{said}\n{federation.logs()}")
    return run.returncode, said


def test_three_rounds_end_with_the_adapter_of_one_process(federation, tmp_path):
    held = str(federation.folder / "d.h5")
    run = federation.run(tmp_path / "many", "--rounds", "3", "--cache", held, "--min-sites", "3")
    started = time.monotonic()
    code, said = ended(federation, run)
    federation.pace = (time.monotonic() - started) / 5  # who it is, three rounds, the last counts
    assert code == 0, said + federation.logs()
    table = read_table(federation.folder / "whole.h5")
    federate(table, config(rounds=3), runs=tmp_path, out=tmp_path / "one", device="cpu",
             backend="torch")  # fmt: skip
    (ref, facts), (comp, told) = (
        read_adapters(tmp_path / name / "adapter.safetensors") for name in ("one", "many")
    )
    assert set(comp) == set(ref) and told["chosen"] == facts["chosen"]
    for name in ref:
        torch.testing.assert_close(comp[name], ref[name], rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(lines(tmp_path / "many"), lines(tmp_path / "one"), strict=True):
        assert ours.pop("train_loss") == pytest.approx(theirs.pop("train_loss"), rel=1e-6)
        assert ours == theirs
    result = json.loads((tmp_path / "many" / "summary.json").read_text("utf-8"))["results"][0]
    assert result["unseen"] == facts["chosen"][0]["test_accuracy"]["d"]


def test_sites_killed_in_a_round_are_named_until_too_few_are_left(federation, tmp_path):
    received = {n: federation.log(n).read_text("utf-8").count(RECEIVING) for n in "bc"}
    seconds = str(max(8, int(2 * federation.pace)))
    run = federation.run(
        tmp_path / "run", "--rounds", "2", "--timeout", seconds, "--min-sites", "2"
    )
    for name, message in (("b", 2), ("c", 3)):  # the first asks who it is, then come the rounds
        federation.wait(name, RECEIVING, received[name] + message)
        federation.kill(name)
    code, said = ended(federation, run)
    assert code == 1 and "ended as finished:failed" in said, said + federation.logs()
    # On a slow machine Flower misses its heartbeat before our own time is up.
    gone = r"(its site did not answer in time|.*Node Unavailable.*)"
    assert re.search(f"round 0: nothing from b: {gone}", said), said
    assert "round 1: 1 site(s) answered, the run asks for 2" in said
    (line,) = lines(tmp_path / "run")  # round 0 without b, told of by the one that is left
    assert set(line["rejected"]) == {"b"} and re.fullmatch(gone, line["rejected"]["b"])
    assert set(line["train_loss"]) == {"a", "c"} and set(line["val_accuracy"]) == {"a"}
    assert read_adapters(tmp_path / "run" / "adapter.safetensors")[1]["rounds_done"] == 1
    assert not (tmp_path / "run" / "done").exists()
