"""What Flower's programs are started with; no program is started here."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import flower as cli_flower
from pipeline.cli.app import cli
from pipeline.errors import ConfigError
from pipeline.flower import programs as flower_programs


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(flower_programs, "program", lambda name: f"bin/{name}")


@pytest.fixture
def keys(tmp_path):
    for name in ("ca.crt", "server.pem", "server.key"):
        (tmp_path / name).write_text("x")
    return tmp_path


def test_a_superlink_serves_others_with_tls_or_by_consent_only(keys):
    plain = ["bin/flower-superlink", "--host", "127.0.0.1", "--port", "8000", "--insecure"]
    assert flower_programs.superlink("127.0.0.1", 8000, None, False) == plain
    for host in ("0.0.0.0", "::", "192.168.1.4", "fl.example.org"):
        with pytest.raises(ConfigError, match="without TLS anyone between can read"):
            flower_programs.superlink(host, 8000, None, False)
        assert "--insecure" in flower_programs.superlink(host, 8000, None, True)
        command = flower_programs.superlink(host, 8000, keys, False, ["--database", "x.db"])
        assert "--insecure" not in command and command[-2:] == ["--database", "x.db"]
        for option, name in flower_programs.CERTIFICATES.items():
            assert command[command.index(option) + 1] == str(keys / name)
    (keys / "server.key").unlink()
    with pytest.raises(ConfigError, match="there is no file .*server.key"):
        flower_programs.superlink("0.0.0.0", 8000, keys, False)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_loopback_needs_no_tls(address):
    assert "--insecure" in flower_programs.supernode(address, {"cache": "x"}, 1, None, False)
    assert flower_programs.connection(address, None, False) == {
        "address": address,
        "insecure": True,
    }


def test_others_are_reached_by_tls_unless_told(keys):
    at, root = "fl.example.org:8000", keys / "ca.crt"
    assert "--insecure" not in flower_programs.supernode(at, {"cache": "x"}, 1, None, False)
    assert flower_programs.supernode(at, {"cache": "x"}, 1, root, False)[-2:] == [
        "--root-certificates",
        str(root),
    ]
    assert flower_programs.connection(at, None, False) == {"address": at}
    assert flower_programs.connection(at, root, False)["root-certificates"] == str(root)
    with pytest.raises(ConfigError, match="exclude each other"):
        flower_programs.connection(at, root, True)
    with pytest.raises(ConfigError, match="exclude each other"):
        flower_programs.superlink("0.0.0.0", 8000, keys, True)


@pytest.mark.parametrize(
    "name", ["a b.h5", "it's.h5", 'a "b".h5', "a=b c=d.h5", "\\n.h5", "é漢.h5"]
)
def test_paths_arrive_as_they_are(name):
    config = pytest.importorskip("flwr.common.config", reason="flwr is not installed")
    command = flower_programs.supernode("localhost:1", {"cache": f"/x/{name}", "domain": "d"}, 1,
                                        None, False)  # fmt: skip
    values = command[command.index("--node-config") + 1]
    assert config.parse_config_args([values]) == {"cache": f"/x/{name}", "domain": "d"}


@pytest.mark.parametrize("name", ["both ' and \"", "line\nbreak"])
def test_paths_that_flower_cannot_take_are_refused(name):
    with pytest.raises(ConfigError, match="cannot be handed to Flower"):
        flower_programs.supernode("localhost:1", {"cache": name}, 1, None, False)


def test_the_app_holds_names_only_and_no_code(tmp_path):
    asked = {"settings": {"held_out": [["é\u007f\U0001f600'\"\\"]]}, "sites": 3}
    app = flower_programs.write_app(tmp_path, asked, {"address": "x:1", "insecure": True})
    assert [file.name for file in app.iterdir()] == ["pyproject.toml"]
    found = tomllib.loads((app / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    assert json.loads(found["config"]["fedclip"]) == asked
    assert found["components"]["clientapp"] == "pipeline.flower.app:client_app"
    link = tomllib.loads((tmp_path / "config.toml").read_text("utf-8"))["superlink"]
    assert link == {"default": "fedclip", "fedclip": {"address": "x:1", "insecure": True}}


def test_programs_are_silent_unless_told(monkeypatch):
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_HOME", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    found = flower_programs.environment()
    assert found["FLWR_TELEMETRY_ENABLED"] == "0" and found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["PYTHONPATH"] == str(flower_programs.HOME)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("PYTHONPATH", f"/other:{flower_programs.HOME}")
    found = flower_programs.environment()
    assert found["FLWR_TELEMETRY_ENABLED"] == "1"
    assert found["PYTHONPATH"] == f"{flower_programs.HOME}:/other"


def test_commands_hand_on_what_was_said(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(cli_flower, "_become", ran.append)
    cache = tmp_path / "site.h5"
    cache.touch()
    words = ["--domain", "photo", "--superlink", "h:1", "--", "--max-retries", "3"]
    invoked = CliRunner().invoke(cli, ["flower", "supernode", str(cache), *words])
    assert invoked.exit_code == 0, invoked.output
    (command,) = ran
    assert f"cache='{cache}' domain='photo' device='auto' backend='auto'" in command
    assert command[-2:] == ["--max-retries", "3"] and "--insecure" not in command
    told = CliRunner().invoke(cli, ["flower", "supernode", str(tmp_path / "none.h5")])
    assert told.exit_code == 1 and "no such cache" in told.output
    told = CliRunner().invoke(cli, ["flower", "superlink", "--host", "0.0.0.0"])
    assert told.exit_code == 1 and "--insecure where that is meant" in told.output


def test_what_cannot_go_to_sites_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(cli_flower, "_followed", lambda *_: pytest.fail("a run was started"))
    words = ["flower", "run", "--sites", "2", "--method", "ditto"]
    told = CliRunner().invoke(cli, words)
    assert told.exit_code == 1 and "method ditto cannot go to sites" in told.output


def test_a_missing_flower_says_what_to_install(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = CliRunner().invoke(cli, ["flower", "superlink"])
    assert told.exit_code == 1 and told.output.count("\n") == 1
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
        flower_programs, "write_app", lambda folder, what, link: asked.append(what) or folder
    )
    monkeypatch.setattr(cli_flower, "_followed", lambda *_: 0)
    told = CliRunner().invoke(cli, ["flower", "run", "--sites", "2", *words])
    assert told.exit_code == 0 and asked[0]["settings"]["method"] == method
    said = "sites are not trusted, so the method is median; pass --method fedavg to average"
    assert (said in told.output) == (method == "median")
