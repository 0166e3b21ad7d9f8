"""A SuperLink, a proxy and three SuperNodes with keys on loopback: rounds, strangers, kills."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cache.store import read_table, write_table
from pipeline.flower import certificates, programs
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters
from tests.conftest import ROOT
from tests.flower.sites import config, cut, lines
from tests.runs.small_runs import small

PATIENCE = 900  # seconds for what takes 25 on two idle cores
RECEIVING = "Receiving: train message"
FLOWER = [sys.executable, "-m", "pipeline", "flower"]
SETTINGS = ["--held-out", "d", "--batch", "8", "--lr", "1e-3", "--method", "fedavg"]

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Federation:
    """Programs, each with a log, a FLWR_HOME of its own, and a process group to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, {}
        self.at = f"127.0.0.1:{free_port()}"
        self.certificates = certificates.make(folder / "certificates", (), 5)
        self.tls = ["--root-certificates", str(self.certificates / "ca.crt")]
        self.pace = 6.0  # seconds that a message takes here: to be measured

        self.sites_at = self.at  # where sites reach it: the proxy's address, if there is nginx

    def env(self, name: str) -> dict[str, str]:
        return {**os.environ, "FLWR_HOME": str(self.folder / f"home-{name}")}

    def proxy(self) -> None:
        """nginx with the file that docs/flower.md shows, at other ports and paths."""
        self.sites_at = f"127.0.0.1:{free_port()}"
        server = (ROOT / "pipeline" / "flower" / "nginx.conf").read_text("utf-8")
        for old, new in (("/etc/fedclip", str(self.certificates)), ("127.0.0.1:8000", self.at),
                         ("listen 8443", f"listen {self.sites_at}")):  # fmt: skip
            assert old in server
            server = server.replace(old, new)
        temporary = "".join(
            f"{kind}_temp_path {self.folder};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self.folder / "nginx.conf"
        file.write_text(
            f"daemon off; pid {self.folder}/nginx.pid; user root;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{server}\n}}\n"
        )
        assert NGINX is not None
        self.start("proxy", NGINX, "-c", str(file), command=())

    def start(self, name: str, *words: str, command=FLOWER) -> None:
        with self.log(name).open("wb") as log:
            self.programs[name] = subprocess.Popen(
                [*command, *words], env=self.env(name), cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def supernode(self, name: str, cache: Path, *words: str) -> None:
        words = ("--superlink", self.sites_at, *self.tls, *words)
        self.start(name, "supernode", str(cache), *words)

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
        if NGINX is not None:
            made.proxy()
        made.wait("link", "Application startup complete")
        public = [str(made.certificates / f"site-{n}.pub") for n in (1, 2, 3)]
        register = [*FLOWER, "register", *public, "--superlink", made.at, *made.tls]
        subprocess.run(register, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
        for n, name in enumerate("abc", 1):
            key = ["--key", str(made.certificates / f"site-{n}"), "--backend", "torch"]
            made.supernode(name, files[n - 1], *key)
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


STRANGER = """
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client_app = ClientApp()
server_app = ServerApp()

@client_app.query()
def steal(message, context):
    cache = Path(context.node_config["cache"]).read_bytes()
    return Message(RecordDict({"loot": ConfigRecord({"cache": cache})}), reply_to=message)

@server_app.main()
def main(grid, context):
    asks = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(asks))
    Path("MARK").write_bytes(replies[0].content["loot"]["cache"])
"""


def flwr(federation, at: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Flower's own command, with a connection to an address."""
    folder.mkdir(exist_ok=True)
    link = programs.connection(at, federation.certificates / "ca.crt")
    programs.write_config(folder, link, {})
    env = {**programs.environment(), "FLWR_HOME": str(folder)}
    command = [programs.program("flwr"), *words]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def posted(federation, path: str) -> int:
    """The status of an empty request to the address that sites have; the path as it is."""
    host, port = federation.sites_at.split(":")
    trusted = ssl.create_default_context(cafile=federation.certificates / "ca.crt")
    link = http.client.HTTPSConnection(host, int(port), context=trusted, timeout=PATIENCE)
    link.putrequest("POST", path, skip_accept_encoding=True)
    link.putheader("Content-Type", "application/x-protobuf")
    link.putheader("Content-Length", "0")
    link.endheaders()
    with contextlib.closing(link):
        return link.getresponse().status


@needs_nginx
def test_a_stranger_runs_nothing_and_fetches_no_cache(federation, tmp_path):
    app = tmp_path / "stranger"
    app.mkdir()
    (app / "stranger.py").write_text(STRANGER.replace("MARK", str(tmp_path / "loot")))
    (app / "pyproject.toml").write_text(
        '[project]\nname = "stranger"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "s"\n'
        '[tool.flwr.app.components]\nserverapp = "stranger:server_app"\n'
        'clientapp = "stranger:client_app"\n'
    )
    before = json.loads(
        flwr(
            federation, federation.at, tmp_path / "own", "ls", "--format", "json", "fedclip"
        ).stdout
    )["runs"]
    told = flwr(federation, federation.sites_at, tmp_path / "home", "run", str(app), "fedclip")
    assert told.returncode != 0 and "Successfully started" not in told.stdout, told.stdout
    listed = flwr(federation, federation.at, tmp_path / "own", "ls", "--format", "json", "fedclip")
    assert len(json.loads(listed.stdout)["runs"]) == len(before)
    assert not (tmp_path / "loot").exists()
    for path in ("/v1/control/start-run", "/v1/runtime/pull-messages", "/", "/docs",
                 "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
                 "/v1/fleet/..%2fcontrol/start-run", "//v1/control/start-run", "/v1/fleet",
                 "/v1/fleet/%2e%2e%2fcontrol%2fstart-run", "/V1/CONTROL/start-run"):  # fmt: skip
        assert posted(federation, path) in (301, 400, 403, 404), path
    reached = (401, 415)  # the SuperLink says so itself: no signature, nothing that it reads
    assert posted(federation, "/v1/fleet/pull-messages") in reached
    assert posted(federation, "/v1/control/../fleet/pull-messages") in reached


def test_a_supernode_without_a_registered_key_is_refused(federation):
    cache = federation.folder / "a.h5"
    federation.supernode("keyless", cache, "--", "--max-retries", "1")
    unknown = ["--key", str(federation.certificates / "site-5")]
    federation.supernode("unknown", cache, *unknown, "--", "--max-retries", "1")
    for name in ("keyless", "unknown"):
        assert federation.programs[name].wait(timeout=PATIENCE) != 0, federation.logs()
        del federation.programs[name]


def test_sites_killed_in_a_round_are_named_until_too_few_are_left(federation, tmp_path):
    received = {n: federation.log(n).read_text("utf-8").count(RECEIVING) for n in "bc"}
    # Every message is a process that imports torch: beside other tests six times the usual time.
    seconds = str(max(30, int(6 * federation.pace)))
    run = federation.run(
        tmp_path / "run", "--rounds", "2", "--timeout", seconds, "--min-sites", "2"
    )
    for name, message in (("b", 1), ("c", 2)):
        federation.wait(name, RECEIVING, received[name] + message)
        federation.kill(name)
    code, said = ended(federation, run)
    assert code == 1 and "ended as finished:failed" in said, said + federation.logs()
    # On a slow machine Flower misses its heartbeat before our own time is up.
    gone = r"(its site did not answer in time|.*Node Unavailable.*)"
    assert re.search(f"round 0: nothing from b: {gone}", said), said
    few = re.search(r"round 1: ([01]) site\(s\) answered, the run asks for 2", said)
    assert few, said
    assert not (tmp_path / "run" / "done").exists()
    if few[1] == "0":  # a was late: nobody is left to tell how round 0 did
        return
    (line,) = lines(tmp_path / "run")  # round 0 without b, told of by the one that is left
    assert set(line["rejected"]) == {"b"} and re.fullmatch(gone, line["rejected"]["b"])
    assert set(line["train_loss"]) == {"a", "c"} and set(line["val_accuracy"]) == {"a"}
    assert read_adapters(tmp_path / "run" / "adapter.safetensors")[1]["rounds_done"] == 1
