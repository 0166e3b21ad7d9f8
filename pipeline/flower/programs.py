"""What Flower's own programs are started with: arguments, environment and connections."""

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
LOOPBACK = "127.0.0.1"
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
    """This process's, with Flower silent and its state in .flower here.

    What is set already stays: FLWR_TELEMETRY_ENABLED=1 turns telemetry on.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    inherited = {**QUIET, "FLWR_HOME": str(HOME / ".flower"), **os.environ}
    return inherited | {"PATH": path, "PYTHONSAFEPATH": "1"}  # programs start each other by name


def program(name: str) -> str:
    """The path of one of Flower's programs. Raises ConfigError, saying what to install."""
    file = Path(sys.executable).parent / name
    if importlib.util.find_spec("flwr") is None or not file.exists():
        raise ConfigError(
            f"Flower is not installed for {sys.executable}; "
            f"{sys.executable} -m pip install -r {HOME / 'requirements-flower.txt'}"
        )
    return str(file)


def superlink(port: int, certificates: Path | None, more: Sequence[str] = ()) -> list[str]:
    """The command of a SuperLink on this machine's loopback: whoever reaches it can run code on it.

    certificates  a folder with ca.crt, server.pem and server.key, and SuperNodes must have
                  registered keys; None: no encryption and no keys
    """
    command = [program("flower-superlink"), "--host", LOOPBACK, "--port", str(port)]
    if certificates is None:
        return [*command, "--insecure", *more]
    for option, name in CERTIFICATES.items():
        command += [option, str(_file(certificates / name, "--certificates"))]
    return [*command, "--enable-supernode-auth", *more]


def supernode(
    address: str, node_config: Mapping[str, str], port: int, root: Path | None, key: Path | None,
    more: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """The command of a site's SuperNode; port: of its own loopback address, for its workers."""
    values = " ".join(f"{name}={_quoted(value)}" for name, value in node_config.items())
    command = [program("flower-supernode"), "--superlink", address, "--port", str(port)]
    command += ["--node-config", values]
    link = connection(address, root)
    command += ["--insecure"] if link.get("insecure") else []
    command += ["--root-certificates", str(root)] if root is not None else []
    command += ["--auth-supernode-private-key", str(_file(key, "--key"))] if key is not None else []
    return [*command, *more]


def connection(address: str, root: Path | None) -> dict[str, Any]:
    """The entry of Flower's config.toml for a SuperLink: TLS, but for loopback without `root`."""
    if root is not None:
        return {"address": address, "root-certificates": str(_file(root, "--root-certificates"))}
    host = address.rsplit(":", 1)[0].strip("[]")
    # Elsewhere a certificate that this machine trusts anyway may do.
    return {"address": address, **({"insecure": True} if _loopback(host) else {})}


def write_config(folder: Path, link: Mapping[str, Any], asked: Mapping[str, Any]) -> Path:
    """Flower's config.toml in `folder`, which is to be FLWR_HOME, and a run config beside it.

    returns  the run config's file, for `flwr run --run-config`
    """
    values = [f"{name} = {_toml(value)}" for name, value in link.items()]
    lines = ["[superlink]", f'default = "{NAME}"', f"[superlink.{NAME}]", *values]
    (folder / "config.toml").write_text("\n".join(lines) + "\n", "utf-8")
    file = folder / "run.toml"
    text = "".join(f"{name} = {_toml(value)}\n" for name, value in asked.items())
    file.write_text(text, "utf-8")
    return file


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


def _toml(value: str | bool | float) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
