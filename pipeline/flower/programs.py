"""What Flower's own programs are started with: arguments, environment and the app's folder."""

import importlib.util
import ipaddress
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.places import HOME

NAME = "fedclip"
CERTIFICATES = {  # the names that Flower's own examples give them
    "--ssl-ca-certfile": "ca.crt",
    "--ssl-certfile": "server.pem",
    "--ssl-keyfile": "server.key",
}
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",  # else every program posts to telemetry.flower.ai
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # else it asks api.flower.ai once a day
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else it makes a venv for each run
    "RAY_USAGE_STATS_ENABLED": "0",
}


def environment() -> dict[str, str]:
    """This process's, with Flower silent, its state in .flower here, and this program importable.

    What is set already stays: FLWR_TELEMETRY_ENABLED=1 turns telemetry on.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    modules = [str(HOME), *(folder for folder in before if folder not in ("", str(HOME)))]
    inherited = {**QUIET, "FLWR_HOME": str(HOME / ".flower"), **os.environ}
    return inherited | {
        "PATH": path,  # Flower's programs start each other by name
        "PYTHONPATH": os.pathsep.join(
            [str(HOME), *(m for m in modules if m not in ("", str(HOME)))]
        ),
        "PYTHONSAFEPATH": "1",
    }


def program(name: str) -> str:
    """The path of one of Flower's programs. Raises ConfigError, saying what to install."""
    file = Path(sys.executable).parent / name
    if importlib.util.find_spec("flwr") is None or not file.exists():
        raise ConfigError(
            f"Flower is not installed for {sys.executable}; "
            f"{sys.executable} -m pip install -r {HOME / 'requirements-flower.txt'}"
        )
    return str(file)


def superlink(
    host: str, port: int, certificates: Path | None, insecure: bool, more: Sequence[str] = ()
) -> list[str]:
    """The command of a SuperLink that sites and runs connect to.

    certificates  a folder with ca.crt, server.pem and server.key; None: no encryption, which
                  needs `insecure` unless host is this machine's own loopback
    """
    command = [program("flower-superlink"), "--host", host, "--port", str(port)]
    if certificates is not None and insecure:
        raise ConfigError("--certificates and --insecure exclude each other; leave one of them out")
    if certificates is None:
        return [*command, *_plain(host, insecure, "--certificates FOLDER"), *more]
    for option, name in CERTIFICATES.items():
        command += [option, str(_file(certificates / name, "--certificates"))]
    return [*command, *more]


def supernode(
    address: str, node_config: Mapping[str, str], port: int, root: Path | None, insecure: bool,
    more: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """The command of a site's SuperNode; port: of its own loopback address, for its workers."""
    values = " ".join(f"{name}={_quoted(value)}" for name, value in node_config.items())
    command = [program("flower-supernode"), "--superlink", address, "--port", str(port)]
    command += ["--node-config", values, *_client_tls(address, root, insecure)]
    return [*command, *more]


def connection(address: str, root: Path | None, insecure: bool) -> dict[str, Any]:
    """The entry of Flower's config.toml for a SuperLink."""
    tls = _client_tls(address, root, insecure)
    if tls == ["--insecure"]:
        return {"address": address, "insecure": True}
    return {"address": address, **({"root-certificates": tls[1]} if tls else {})}


def write_app(folder: Path, asked: Mapping[str, Any], link: Mapping[str, Any]) -> Path:
    """Makes an app whose code is this program as each machine has it, and Flower's config.toml.

    Nothing but names and the run's settings is sent: a site runs its own copy of this program.
    returns  the app's folder; FLWR_HOME is to be `folder`
    """
    app = folder / NAME
    app.mkdir()
    lines = [
        "[project]",
        f'name = "{NAME}"',
        'version = "1.0.0"',
        'description = "FedCLIP from feature caches"',
        'license = "MIT"',
        'dependencies = ["flwr>=1.41.0"]',
        "[tool.flwr.app]",
        f'publisher = "{NAME}"',
        "[tool.flwr.app.components]",
        'serverapp = "pipeline.flower.app:server_app"',
        'clientapp = "pipeline.flower.app:client_app"',
        "[tool.flwr.app.config]",
        f"{NAME} = {_toml(json.dumps(asked))}",
    ]
    (app / "pyproject.toml").write_text("\n".join(lines) + "\n", "utf-8")
    values = [f"{name} = {_toml(value)}" for name, value in link.items()]
    (folder / "config.toml").write_text(
        "\n".join(["[superlink]", f'default = "{NAME}"', f"[superlink.{NAME}]", *values]) + "\n",
        "utf-8",
    )
    return app


def _client_tls(address: str, root: Path | None, insecure: bool) -> list[str]:
    if root is not None and insecure:
        raise ConfigError("--root-certificates and --insecure exclude each other; leave one out")
    if root is not None:
        return ["--root-certificates", str(_file(root, "--root-certificates"))]
    host = address.rsplit(":", 1)[0].strip("[]")
    # Elsewhere a certificate that this machine trusts anyway may do.
    return ["--insecure"] if insecure or _loopback(host) else []


def _plain(host: str, insecure: bool, way_out: str) -> list[str]:
    if not insecure and not _loopback(host):
        raise ConfigError(
            f"--host {host} serves other machines, and without TLS anyone between can read and "
            f"change what travels: pass {way_out}, or --insecure where that is meant"
        )
    return ["--insecure"]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file(path: Path, option: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"{option}: there is no file {path}")
    return path.resolve()


def _quoted(value: str) -> str:
    """As Flower's --node-config takes it: in quotes that the value does not hold."""
    if "'" not in value and value.isprintable():
        return f"'{value}'"  # TOML's literal string
    if '"' not in value and value.isprintable():
        return _toml(value)
    raise ConfigError(f"{value!r} cannot be handed to Flower: both kinds of quotes, or unprintable")


def _toml(value: str | bool) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
