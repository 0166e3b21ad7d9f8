"""What Flower's programs are started with; no program is started here."""

import importlib.util
import math
import tomllib
from pathlib import Path

import pytest

from pipeline.cli import flower as cli_flower
from pipeline.errors import ConfigError
from pipeline.flower import programs as flower_programs
from pipeline.flower.run_config import DEFAULTS, OfRun, config_of, terms_of
from pipeline.settings import RunConfig
from tests.cli.commands import call
from tests.conftest import ROOT
from tests.packages import need


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(flower_programs, "program", lambda name: f"bin/{name}")


@pytest.fixture
def keys(tmp_path):
    for name in ("ca.crt", "server.pem", "server.key"):
        (tmp_path / name).write_text("x")
    return tmp_path


def test_a_superlink_serves_loopback_alone_and_asks_for_keys_with_certificates(keys):
    plain = ["bin/flower-superlink", "--host", "127.0.0.1", "--port", "8000", "--insecure"]
    assert flower_programs.superlink(8000, None) == plain
    command = flower_programs.superlink(8000, keys, ["--database", "x.db"])
    assert command[:5] == plain[:5] and "--insecure" not in command
    assert command[-3:] == ["--enable-supernode-auth", "--database", "x.db"]
    for option, name in flower_programs.CERTIFICATES.items():
        assert command[command.index(option) + 1] == str(keys / name)
    (keys / "server.key").unlink()
    with pytest.raises(ConfigError, match="there is no file .*server.key"):
        flower_programs.superlink(8000, keys)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_loopback_needs_no_tls(address):
    assert "--insecure" in flower_programs.supernode(address, {"cache": "x"}, 1, None, None)
    assert flower_programs.connection(address, None) == {"address": address, "insecure": True}


def test_others_are_reached_by_tls(keys):
    at, root = "fl.example.org:8000", keys / "ca.crt"
    command = flower_programs.supernode(at, {"cache": "x"}, 1, root, keys / "server.key")
    assert "--insecure" not in command and command[-4:] == [
        "--root-certificates", str(root), "--auth-supernode-private-key", str(keys / "server.key"),
    ]  # fmt: skip
    assert "--insecure" not in flower_programs.supernode(at, {"cache": "x"}, 1, None, None)
    assert flower_programs.connection(at, None) == {"address": at}
    assert flower_programs.connection(at, root) == {"address": at, "root-certificates": str(root)}
    with pytest.raises(ConfigError, match="--key: there is no file"):
        flower_programs.supernode(at, {"cache": "x"}, 1, root, keys / "none")


@pytest.mark.parametrize(
    "name", ["a b.h5", "it's.h5", 'a "b".h5', "a=b c=d.h5", "\\n.h5", "é漢.h5"]
)
def test_paths_arrive_as_they_are(name):
    need("flwr")
    from flwr.common.config import parse_config_args

    command = flower_programs.supernode("localhost:1", {"cache": f"/x/{name}", "domain": "d"}, 1,
                                        None, None)  # fmt: skip
    values = command[command.index("--node-config") + 1]
    assert parse_config_args([values]) == {"cache": f"/x/{name}", "domain": "d"}


@pytest.mark.parametrize("name", ["both ' and \"", "line\nbreak"])
def test_paths_that_flower_cannot_take_are_refused(name):
    with pytest.raises(ConfigError, match="cannot be handed to Flower"):
        flower_programs.supernode("localhost:1", {"cache": name}, 1, None, None)


def test_settings_arrive_as_they_are(tmp_path):
    asked = {"held_out": "\u00e9\u007f\U0001f600'\"\\", "lr": 1e-3, "rounds": 3, "force": True}
    file = flower_programs.write_config(tmp_path, {"address": "x:1", "insecure": True}, asked)
    assert tomllib.loads(file.read_text("utf-8")) == asked
    link = tomllib.loads((tmp_path / "config.toml").read_text("utf-8"))["superlink"]
    assert link == {"default": "fedclip", "fedclip": {"address": "x:1", "insecure": True}}


def test_the_app_is_the_project_with_its_defaults():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    assert found["config"] == DEFAULTS
    assert found["components"]["clientapp"] == "pipeline.flower.app:client_app"
    fields = {name: value for name, value in vars(RunConfig()).items() if name != "held_out"}
    assert {n: v for n, v in DEFAULTS.items() if n in fields} == fields | {"method": "median"}


def test_a_run_config_is_settings():
    settings = config_of({"rounds": 3, "lr": 1, "method": "krum", "held_out": "a,b", "cache": "x"})
    assert settings == RunConfig(held_out=(("a", "b"),), rounds=3, lr=1.0, method="krum")
    assert type(settings.lr) is float
    assert config_of({"held_out": "none"}) == RunConfig()
    for wrong, why in (
        ({"round": 3}, "'round' is unknown"), ({"rounds": 0}, "rounds must lie in"),
        ({"rounds": "3"}, "rounds must be a whole number"), ({"method": "x"}, "'x' is unknown"),
        ({"rounds": True}, "rounds must be a whole number"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            config_of(wrong)
    assert terms_of({"wait": 5, "out": "x"}) == OfRun(wait=5.0, out="x")
    for wrong in ({"wait": "5"}, {"sites": 0}, {"sites": 2.5}, {"force": 1}, {"timeout": math.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
            terms_of(wrong)


def test_programs_are_silent_unless_told(monkeypatch):
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_HOME"):
        monkeypatch.delenv(name, raising=False)
    found = flower_programs.environment()
    assert found["FLWR_TELEMETRY_ENABLED"] == "0" and found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert flower_programs.environment()["FLWR_TELEMETRY_ENABLED"] == "1"


def test_commands_hand_on_what_was_said(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(cli_flower, "_become", ran.append)
    cache = tmp_path / "site.h5"
    cache.touch()
    words = ["--domain", "photo", "--superlink", "h:1", "--", "--max-retries", "3"]
    call("flower", "supernode", cache, *words)
    (command,) = ran
    assert f"cache='{cache}' domain='photo' device='auto' backend='auto'" in command
    assert command[-2:] == ["--max-retries", "3"] and "--insecure" not in command
    told = call("flower", "supernode", tmp_path / "none.h5", code=1)
    assert "no such cache" in told.output


def test_what_cannot_go_to_sites_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(cli_flower, "_followed", lambda *_: pytest.fail("a run was started"))
    words = ["flower", "run", "--sites", "2", "--method", "ditto"]
    told = call(*words, code=1)
    assert "method ditto cannot go to sites" in told.output


def test_a_missing_flower_says_what_to_install(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = call("flower", "superlink", code=1)
    assert told.output.count("\n") == 1
    assert "Flower is not installed" in told.output
    assert Path(told.output.split()[-1]).name == "requirements-flower.txt"


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ([], "median"),
        (["--method", "fedavg"], "fedavg"),
        (["--clip", "0.1"], "fedavg"),
        (["--preset", "cosine"], "fedavgm"),
        (["--weighting", "rows"], "median"),
    ],
)
def test_sites_are_not_averaged_unless_asked(monkeypatch, words, method):
    asked = []
    monkeypatch.setattr(
        flower_programs, "write_config", lambda folder, link, what: asked.append(what) or folder
    )
    monkeypatch.setattr(cli_flower, "_followed", lambda *_: 0)
    told = call("flower", "run", "--sites", "2", *words)
    assert asked[0]["method"] == method
    said = "sites are not trusted, so the method is median; pass --method fedavg to average"
    assert (said in told.output) == (method == "median")
