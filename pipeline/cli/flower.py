"""./run.sh flower: Flower's own programs, started with safe defaults. flwr is not imported here."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from pipeline.cli.command import PATH, Group, option
from pipeline.cli.options import backend_option, device_option, setting_options
from pipeline.errors import ConfigError
from pipeline.flower import programs
from pipeline.flower.limits import refuse_what_cannot_travel
from pipeline.settings import RunConfig, as_json

LOG = logging.getLogger(__name__)
MORE = {"ignore_unknown_options": True}
NETWORK, DATA = "Network", "Data"
INSECURE = option(
    "--insecure", is_flag=True, section=NETWORK, help="Connect without TLS, also to other machines."
)
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
@option(
    "--host", default="127.0.0.1", show_default=True, section=NETWORK, help="Address to listen on."
)
@option("--port", default=8000, show_default=True, section=NETWORK, help="Port to listen on.")
@option(
    "--certificates", type=PATH, section=NETWORK,
    help="Folder with ca.crt, server.pem and server.key; enables TLS.",
)  # fmt: skip
@INSECURE
@WORDS
def superlink(
    host: str, port: int, certificates: Path | None, insecure: bool, more: tuple[str, ...]
) -> None:
    """Start the SuperLink, the server of all sites. It runs until it is stopped.

    Without --certificates it serves this machine only. Words after -- go to flower-superlink.
    """
    _become(programs.superlink(host, port, certificates, insecure, more))


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
@INSECURE
@WORDS
def supernode(
    cache: Path,
    superlink: str,
    domain: str | None,
    client: str | None,
    device: str,
    backend: str,
    port: int,
    root_certificates: Path | None,
    insecure: bool,
    more: tuple[str, ...],
) -> None:
    """Start a site's SuperNode on its own CACHE. It runs until it is stopped.

    Words after -- go to flower-supernode.
    """
    if not cache.is_file():
        raise ConfigError(f"{cache}: no such cache; create one with ./run.sh extract")
    own = {"cache": str(cache.resolve()), "domain": domain, "client": client, "device": device}
    named = {name: value for name, value in {**own, "backend": backend}.items() if value}
    command = programs.supernode(
        superlink, named, port or _free_port(), root_certificates, insecure, more
    )
    _become(command)


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
@INSECURE
def run(
    superlink: str,
    sites: int,
    min_sites: int | None,
    wait: float,
    timeout: float,
    held_out: str,
    cache: Path | None,
    out: Path | None,
    force: bool,
    root_certificates: Path | None,
    insecure: bool,
    given: dict,
) -> None:
    """Start a run on the connected sites, show its log and wait for its end.

    Sites are not trusted: without --method or --clip the method is median.

    \b
        ./run.sh flower run --sites 3 --held-out sketch --rounds 50
    """
    names = () if held_out == "none" else tuple(dict.fromkeys(held_out.split(",")))
    if "method" not in given and not given.get("clip"):
        given["method"] = "median"  # as long as fewer than half of the clients lie
        LOG.warning(
            "sites are not trusted, so the method is median; pass --method fedavg to average"
        )
    if given.get("choose") == "loss" and not _named("choose"):  # of the preset
        given["choose"] = "accuracy"
        LOG.warning("sites send counts, not losses, so rounds are chosen by accuracy")
    config = RunConfig(held_out=(names,), **given)
    refuse_what_cannot_travel(config)
    asked = {
        "settings": as_json(config),
        "sites": sites,
        "min_sites": min_sites or min(2, sites),
        "wait": wait,
        "timeout": timeout,
        "cache": str(cache.resolve()) if cache else None,
        "out": str(out.resolve()) if out else None,
        "force": force,
    }
    link = programs.connection(superlink, root_certificates, insecure)
    flwr = programs.program("flwr")
    with tempfile.TemporaryDirectory(prefix="fedclip-") as folder:
        app = programs.write_app(Path(folder), asked, link)
        env = {**programs.environment(), "FLWR_HOME": folder}
        sys.exit(_followed(flwr, app, env))


def _followed(flwr: str, app: Path, env: dict[str, str]) -> int:
    """Relays a run's log to stderr until the run ends; 0 when it was completed."""
    started = None
    command = [flwr, "run", str(app), programs.NAME, "--stream"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            LOG.info("%s", click.unstyle(line).rstrip("\n"))  # Flower colours its lines
            started = started or re.search(r"started run (\d+)", line)
    if started is None:
        raise ConfigError("Flower did not start a run; see its messages above")
    listing = [flwr, "ls", "--run-id", started[1], "--format", "json", programs.NAME]
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


def _named(name: str) -> bool:
    """Whether the option stood on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source == click.core.ParameterSource.COMMANDLINE


def _become(command: list[str]) -> None:
    os.execve(command[0], command, programs.environment())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
