"""./run.sh flower: Flower's own programs, started with safe defaults. flwr is not imported here."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import PATH, Group, option
from pipeline.cli.options import backend_option, device_option, setting_options
from pipeline.errors import ConfigError
from pipeline.flower import programs
from pipeline.flower.run_config import OfRun, config_of, refuse_what_cannot_travel
from pipeline.places import HOME
from pipeline.settings import RunConfig

LOG = logging.getLogger(__name__)
MORE = {"ignore_unknown_options": True}
NETWORK, DATA = "Network", "Data"
ROOT = option(
    "--root-certificates", type=PATH, section=NETWORK,
    help="The ca.crt that identifies the SuperLink; enables TLS.",
)  # fmt: skip
AT = option(
    "--superlink", default="127.0.0.1:8000", show_default=True, metavar="HOST:PORT",
    section=NETWORK, help="Address of the SuperLink.",
)  # fmt: skip
WORDS = click.argument("more", nargs=-1, type=click.UNPROCESSED)


@click.group(cls=Group)
def flower() -> None:
    """Federate over real machines with Flower (docs/flower.md).

    One machine runs `superlink`, each site runs `supernode` with its own cache, and `run` starts a
    run. Features and images stay at the sites; only adapters and counts are sent.
    """


@flower.command(context_settings=MORE)
@option("--port", default=8000, show_default=True, section=NETWORK, help="Port to listen on.")
@option(
    "--certificates", type=PATH, section=NETWORK,
    help="Folder with ca.crt, server.pem and server.key; enables TLS and SuperNode keys.",
)  # fmt: skip
@WORDS
def superlink(port: int, certificates: Path | None, more: tuple[str, ...]) -> None:
    """Start the SuperLink, the server of all sites. It runs until it is stopped.

    It listens on 127.0.0.1 alone: who can reach all of it can run code on this machine. Sites come
    through a reverse proxy that passes /v1/fleet/ (docs/flower.md). Words after -- go to
    flower-superlink.
    """
    _become(programs.superlink(port, certificates, more))


@flower.command()
@click.argument("keys", nargs=-1, required=True, type=PATH, help="Public keys of SuperNodes.")
@AT
@ROOT
def register(keys: tuple[Path, ...], superlink: str, root_certificates: Path | None) -> None:
    """Let the SuperNodes with these KEYS connect: flwr supernode register."""
    flwr = programs.program("flwr")
    with _configured(superlink, root_certificates, {}) as (env, _):
        for key in keys:
            command = [flwr, "supernode", "register", str(key), programs.NAME]
            if code := subprocess.run(command, env=env, check=False).returncode:
                sys.exit(code)


@flower.command(context_settings=MORE)
@click.argument("cache", type=PATH, help="Cache file of the site.")
@AT
@option("--domain", section=DATA, note="all", help="The domain of the cache that takes part.")
@option(
    "--client", section=DATA, note="all",
    help="The client of a partition that takes part: domain/0.",
)  # fmt: skip
@device_option
@backend_option
@option(
    "--port", default=0, section=NETWORK, note="a free port",
    help="Local port of the SuperNode's workers.",
)  # fmt: skip
@ROOT
@option("--key", type=PATH, section=NETWORK, help="Private key of the SuperNode.")
@WORDS
def supernode(
    cache: Path, superlink: str, port: int, root_certificates: Path | None, key: Path | None,
    more: tuple[str, ...], **part: str | None,
) -> None:  # fmt: skip
    """Start a site's SuperNode on its own CACHE. It runs until it is stopped.

    Words after -- go to flower-supernode.
    """
    if not cache.is_file():
        raise ConfigError(f"{cache}: no such cache; create one with ./run.sh extract")
    own = {"cache": str(cache.resolve()), **{name: value for name, value in part.items() if value}}
    port = port or _free_port()
    _become(programs.supernode(superlink, own, port, root_certificates, key, more))


@flower.command()
@AT
@option(
    "--sites", required=True, type=click.IntRange(1), section=NETWORK,
    help="Number of SuperNodes to wait for.",
)  # fmt: skip
@option(
    "--min-sites", type=click.IntRange(1), section=NETWORK, note="2, or 1 of one site",
    help="End the run when fewer sites answer.",
)  # fmt: skip
@option(
    "--wait", default=600.0, show_default=True, section=NETWORK,
    help="Seconds to wait for the sites.",
)  # fmt: skip
@option(
    "--timeout", default=600.0, show_default=True, section=NETWORK,
    help="Seconds that a round may take.",
)  # fmt: skip
@option(
    "--held-out", default="none", metavar="DOMAIN|none", show_default=True, section=DATA,
    help="Domain that no client trains on; `a,b` holds out both.",
)  # fmt: skip
@option(
    "--cache", type=PATH, section=DATA,
    help="Cache on the SuperLink's machine with held-out rows to test on.",
)  # fmt: skip
@setting_options
@option(
    "--out", type=PATH, note="runs/<run_id>", help="Folder on the SuperLink's machine to write to."
)
@option("--force", is_flag=True, help="Replace a run that is already there.")
@ROOT
def run(
    superlink: str, sites: int, min_sites: int | None, held_out: str, cache: Path | None,
    out: Path | None, root_certificates: Path | None, given: dict[str, Any], **more: float,
) -> None:  # fmt: skip
    """Start a run on the connected sites, show its log and wait for its end.

    Sites are not trusted: without --method or --clip the method is median.

    \b
        ./run.sh flower run --sites 3 --held-out sketch --rounds 50
    """
    if "method" not in given and not given.get("clip"):
        given["method"] = "median"  # as long as fewer than half of the clients lie
        LOG.warning(
            "sites are not trusted, so the method is median; pass --method fedavg to average"
        )
    given.setdefault("method", RunConfig.method)
    given["held_out"] = held_out
    refuse_what_cannot_travel(config_of(given))
    files = (str(file.resolve()) if file else "" for file in (cache, out))
    terms = OfRun(*files, sites=sites, min_sites=min_sites or min(2, sites), **more)
    asked = {**given, **terms._asdict()}
    flwr = programs.program("flwr")
    with _configured(superlink, root_certificates, asked) as (env, file):
        sys.exit(_followed([flwr, "run", str(HOME), programs.NAME, "--run-config", str(file)], env))


@contextmanager
def _configured(
    address: str, root: Path | None, asked: dict[str, Any]
) -> Iterator[tuple[dict[str, str], Path]]:
    """Flower's environment with a connection to a SuperLink, and the file of a run config."""
    link = programs.connection(address, root)
    with tempfile.TemporaryDirectory(prefix="fedclip-") as folder:
        file = programs.write_config(Path(folder), link, asked)
        yield {**programs.environment(), "FLWR_HOME": folder}, file


def _followed(command: list[str], env: dict[str, str]) -> int:
    """Relays a run's log to stderr until the run ends; 0 when it was completed."""
    started = None
    with subprocess.Popen(
        [*command, "--stream"], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            LOG.info("%s", click.unstyle(line).rstrip("\n"))  # Flower colours its lines
            started = started or re.search(r"started run (\d+)", line)
    if started is None:
        raise ConfigError("Flower did not start a run; see its messages above")
    listing = [command[0], "ls", "--run-id", started[1], "--format", "json", programs.NAME]
    told = subprocess.run(listing, env=env, capture_output=True, text=True, check=False).stdout
    try:
        status = json.loads(told)["runs"][0]["status"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(
            f"Flower did not report how run {started[1]} ended: {told[:300]}"
        ) from None
    if status != "finished:completed":
        raise ConfigError(f"run {started[1]} ended as {status}; see its log above")
    return 0


def _become(command: list[str]) -> None:
    os.execve(command[0], command, programs.environment())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
