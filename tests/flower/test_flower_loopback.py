"""A SuperLink behind its proxy and two SuperNodes with keys, on loopback: rounds, strangers, kills.

One site's app runs as a user of its own, as docs/flower.md shows, where the tests may start it so.
"""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from cache.store import read_table, write_table
from pipeline.flower import programs
from pipeline.runs.federate import federate
from tests.conftest import NEEDS_PROC, ROOT
from tests.flower import certificates
from tests.flower.processes import OURS, PATIENCE, Programs, free_port, same_adapters
from tests.flower.sites import config, cut, lines
from tests.runs.small_runs import small

RECEIVING = "Receiving: train message"
SETTINGS = ["--held-out", "c", "--batch", "8", "--lr", "1e-3", "--method", "fedavg"]
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
PACKAGES = sysconfig.get_paths()["purelib"]
USER = 61_729  # of site b's app: nobody's on this machine

pytestmark = NEEDS_PROC
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt install nginx")


def as_user(env: dict[str, str], *command: str) -> list[str]:
    """The command of docs/flower.md, with this test's user and environment."""
    page = (ROOT / "docs" / "flower.md").read_text("utf-8")
    (shown,) = re.findall(r"^(setpriv .* env -i) ", page, re.MULTILINE)
    user = shlex.split(shown.replace("fedclip-app", str(USER)))
    return [*user, *(f"{name}={value}" for name, value in env.items()), *command]


def programs_for_users(folder: Path) -> str:
    """Flower's programs for other users in folder/bin; else why there are none.

    A user may not be able to run this Python, if it lies in somebody's home, but the system's.
    """
    if os.geteuid() or not shutil.which("setpriv"):
        return "starts a program as another user: run it as root, with setpriv"
    plain = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "true"]
    if subprocess.run(plain, capture_output=True, check=False).returncode:
        return "root cannot become another user here: run it with CAP_SETUID and CAP_SETGID"
    subprocess.run(
        as_user({}, "/bin/true"), check=True
    )  # where that can be, the page's command works
    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, system):
        imports = as_user({"PYTHONPATH": PACKAGES}, python, "-c", "import torch, flwr")
        if subprocess.run(imports, capture_output=True, check=False).returncode == 0:
            (folder / "bin").mkdir()
            for name in ("flower-superexec", "flwr-clientapp"):
                _, text = Path(programs.program(name)).read_text("utf-8").split("\n", 1)
                (folder / "bin" / name).write_text(f"#!{python}\n{text}")
                (folder / "bin" / name).chmod(0o755)
            return ""
    return f"other users cannot run {sys.executable} with {PACKAGES}, nor {system}"


class Federation(Programs):
    """The server's programs and the sites'."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.at = f"127.0.0.1:{free_port()}"
        self.sites_at = self.at  # where sites reach it: the proxy's address, if there is nginx
        self.certificates = certificates.make(folder / "certificates", sites=5)
        self.tls = ["--root-certificates", str(self.certificates / "ca.crt")]
        self.pace = 8.0  # seconds that a message takes here: to be measured
        self.no_users = programs_for_users(folder)

    def proxy(self) -> None:
        """nginx with the file that docs/flower.md shows, at other ports and paths."""
        self.sites_at = f"127.0.0.1:{free_port()}"
        server = (ROOT / "pipeline" / "flower" / "nginx.conf").read_text("utf-8")
        for old, new in (("/etc/fedclip", str(self.certificates)), ("127.0.0.1:8000", self.at),
                         ("listen 8443", f"listen {self.sites_at}")):  # fmt: skip
            assert old in server
            server = server.replace(old, new)
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/nginx-{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self.folder / "nginx.conf"
        file.write_text(
            f"daemon off; pid {self.folder}/nginx.pid; user root;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{server}\n}}\n"
        )
        assert NGINX is not None
        self.start("proxy", NGINX, "-c", str(file))

    def supernode(self, name: str, cache: Path, *words: str) -> None:
        at = ("--superlink", self.sites_at, *self.tls, "--backend", "torch")
        self.start(name, *OURS, "supernode", str(cache), *at, *words)

    def site_of_two_users(self, name: str, cache: Path, *words: str) -> None:
        """A SuperNode with its key, and as another user what starts apps and reads the cache."""
        port, secret = str(free_port()), self.folder / f"{name}.secret"
        secret.write_bytes(os.urandom(32))
        home = self.folder / f"home-{name}-app"
        home.mkdir()
        for path in (home, cache, secret):
            os.chown(path, USER, USER)
            path.chmod(0o700 if path.is_dir() else 0o400)
        apart = ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        self.supernode(name, cache, *words, "--port", port, "--", *apart)
        runs = ["--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *apart[2:]]
        own = self.folder / "bin"
        env = {"PATH": f"{own}:/usr/bin:/bin", "FLWR_HOME": str(home), "PYTHONPATH": PACKAGES,
               "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}  # fmt: skip
        self.start(f"{name}-app", *as_user(env, str(own / "flower-superexec"), *runs))

    def run_of(self, out: Path, *words: str) -> list[str]:
        """Our command of a run."""
        at = ["run", "--superlink", self.at, *self.tls, "--sites", "2", "--out", str(out)]
        return [*OURS, *at, *SETTINGS, *words]

    def flwr(self, at: str, *words: str) -> tuple[int, str]:
        """Flower's own command, with a connection to an address."""
        home = Path(self.env("flwr")["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        link = programs.connection(at, self.certificates / "ca.crt")
        programs.write_config(home, link, {})
        return self.run("flwr", programs.program("flwr"), *words)


@pytest.fixture(scope="module")
def federation():
    # Not pytest's own folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="fedclip-flower-"))
    folder.chmod(0o711)
    write_table(folder / "whole.h5", small(rows=(60, 45, 80)))
    files = cut(read_table(folder / "whole.h5"), folder, ("a",), ("b",), ("c",))
    for file in (*files, folder / "whole.h5"):
        file.chmod(0o600)
    made = Federation(folder)
    try:
        keys = ["--certificates", str(made.certificates)]
        made.start("link", *OURS, "superlink", "--port", made.at.split(":")[1], *keys)
        if NGINX is not None:
            made.proxy()
        made.wait("link", "Application startup complete")
        public = [str(made.certificates / f"site-{n}.pub") for n in (1, 2)]
        register = ["register", *public, "--superlink", made.at, *made.tls]
        code, said = made.run("register", *OURS, *register)
        assert code == 0, said
        made.supernode("a", files[0], "--key", str(made.certificates / "site-1"))
        site = made.supernode if made.no_users else made.site_of_two_users
        site("b", files[1], "--key", str(made.certificates / "site-2"))
        yield made
    finally:
        left = made.end()
        shutil.rmtree(folder)
    assert not left, f"processes {left} outlived their SuperLink or SuperNode"


def test_rounds_end_with_the_adapter_of_one_process(federation, tmp_path):
    held, ours, one = str(federation.folder / "c.h5"), tmp_path / "many", tmp_path / "one"
    more = ["--rounds", "2", "--moments", "kept", "--cache", held, "--min-sites", "2"]
    started = time.monotonic()
    code, said = federation.run("run", *federation.run_of(ours, *more))
    federation.pace = (time.monotonic() - started) / 4  # who it is, two rounds, the last counts
    assert code == 0, said + federation.logs()
    table = read_table(federation.folder / "whole.h5")
    settings = config(rounds=2, moments="kept", held_out=(("c",),))
    federate(table, settings, runs=tmp_path, out=one, device="cpu", backend="torch")
    facts = same_adapters(ours, one)
    for line, other in zip(lines(ours), lines(one), strict=True):
        assert line.pop("train_loss") == pytest.approx(other.pop("train_loss"), rel=1e-6)
        assert line == other
    result = json.loads((ours / "summary.json").read_text("utf-8"))["results"][0]
    assert result["unseen"] == facts["chosen"][0]["test_accuracy"]["c"]


STRANGER = """
import json
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client_app = ClientApp()
server_app = ServerApp()

def read(path):
    try:
        return f"read {len(Path(path).read_bytes())}"
    except OSError as error:
        return type(error).__name__

@client_app.query()
def steal(message, context):
    names = [context.node_config["cache"], *message.content["paths"]["paths"]]
    loot = {"names": names, "found": [read(name) for name in names]}
    return Message(RecordDict({"loot": ConfigRecord(loot)}), reply_to=message)

@server_app.main()
def main(grid, context):
    paths = RecordDict({"paths": ConfigRecord({"paths": PATHS})})
    asks = [Message(paths, node, "query") for node in grid.get_node_ids()]
    loot = [dict(reply.content["loot"]) for reply in grid.send_and_receive(asks)]
    Path("MARK").write_text(json.dumps(loot))
"""


@pytest.fixture(scope="module")
def stranger(federation):
    """An app that reads what it can at each site, and the file that it writes this into."""
    app, loot = federation.folder / "stranger", federation.folder / "loot.json"
    app.mkdir()
    secrets = [*federation.certificates.iterdir(), *federation.folder.glob("*.h5")]
    paths = json.dumps([str(path) for path in secrets])
    text = STRANGER.replace("MARK", str(loot)).replace("PATHS", paths)
    (app / "stranger.py").write_text(text)
    (app / "pyproject.toml").write_text(
        '[project]\nname = "stranger"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "s"\n'
        '[tool.flwr.app.components]\nserverapp = "stranger:server_app"\n'
        'clientapp = "stranger:client_app"\n'
    )
    return str(app), loot


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
def test_a_stranger_runs_nothing_and_fetches_no_cache(federation, stranger):
    app, loot = stranger
    runs = ("ls", "--format", "json", "fedclip")
    before = json.loads(federation.flwr(federation.at, *runs)[1])["runs"]
    code, said = federation.flwr(federation.sites_at, "run", app, "fedclip")
    assert code != 0 and "Successfully started" not in said, said
    assert json.loads(federation.flwr(federation.at, *runs)[1])["runs"] == before
    assert not loot.exists()
    for path in ("/v1/control/start-run", "/v1/runtime/pull-messages", "/", "/docs",
                 "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
                 "/v1/fleet/..%2fcontrol/start-run", "//v1/control/start-run", "/v1/fleet",
                 "/v1/fleet/%2e%2e%2fcontrol%2fstart-run", "/V1/CONTROL/start-run"):  # fmt: skip
        assert posted(federation, path) in (301, 400, 403, 404), path
    reached = (401, 415)  # the SuperLink says so itself: no signature, nothing that it reads
    assert posted(federation, "/v1/fleet/pull-messages") in reached
    assert posted(federation, "/v1/control/../fleet/pull-messages") in reached


def test_an_app_reads_its_sites_cache_and_nothing_else(federation, stranger):
    """The app of a user of the server's machine, who may submit any."""
    if federation.no_users:
        pytest.skip(federation.no_users)
    app, loot = stranger
    code, said = federation.flwr(federation.at, "run", app, "fedclip", "--stream")
    assert code == 0 and loot.exists(), said + federation.logs()
    found = {each["names"][0]: each for each in json.loads(loot.read_text("utf-8"))}
    own = federation.folder / "b.h5"
    told = dict(zip(found[str(own)]["names"], found[str(own)]["found"], strict=True))
    assert told.pop(str(own)) == f"read {own.stat().st_size}"
    assert len(told) == 16 and set(told.values()) == {"PermissionError"}, told
    others = found[str(federation.folder / "a.h5")]["found"]  # of root's app, who sees them all
    assert all(answer.startswith("read") for answer in others), others


def test_a_supernode_without_a_registered_key_is_refused(federation):
    cache, once = federation.folder / "a.h5", ["--", "--max-retries", "1"]
    federation.supernode("keyless", cache, *once)
    federation.supernode("unknown", cache, "--key", str(federation.certificates / "site-5"), *once)
    for name in ("keyless", "unknown"):
        assert federation.ended(name)[0] != 0, federation.logs()


def test_a_site_killed_in_a_round_is_named_and_too_few_end_the_run(federation, tmp_path):
    received = federation.said("b").count(RECEIVING)
    # Every message is a process that imports torch: beside other tests several times slower.
    seconds = str(max(15, int(2.5 * federation.pace)))
    more = ["--rounds", "1", "--timeout", seconds, "--min-sites"]
    federation.start("killed", *federation.run_of(tmp_path / "run", *more, "1"))
    federation.wait("b", RECEIVING, received + 1)
    federation.kill("b")
    code, said = federation.ended("killed")
    # On a slow machine Flower misses its heartbeat before our own time is up.
    gone = r"(its site did not answer in time|.*Node Unavailable.*)"
    assert code == 0 and re.search(f"round 0: nothing from b: {gone}", said), said
    (line,) = lines(tmp_path / "run")
    assert set(line["rejected"]) == {"b"} and re.fullmatch(gone, line["rejected"]["b"])
    assert set(line["train_loss"]) == set(line["val_accuracy"]) == {"a"}

    more = ["--rounds", "1", "--sites", "3", "--wait", "1"]
    code, said = federation.run("few", *federation.run_of(tmp_path / "few", *more))
    assert code == 1 and re.search("[12] of 3 sites connected in 1 s", said), said
    assert "ended as finished:failed" in said and not (tmp_path / "few" / "done").exists()
