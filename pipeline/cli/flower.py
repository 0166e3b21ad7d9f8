"""./run.sh flower: Flower's own programs, started with safe defaults. flwr is not imported here."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from pipeline.cli.console import say
from pipeline.cli.options import PATH, ReleasedSpellings, config_options, given_settings
from pipeline.errors import ConfigError
from pipeline.flower import programs
from pipeline.flower.limits import refuse_what_cannot_travel
from pipeline.settings import RunConfig, as_json

MORE = {"ignore_unknown_options": True}
INSECURE = click.option("--insecure", is_flag=True, help="No TLS, to other machines as well.")
ROOT = click.option(
    "--root-certificates", type=PATH, help="The SuperLink's ca.crt, to know it by; turns TLS on."
)
AT = click.option(
    "--superlink", default="127.0.0.1:8000", show_default=True, metavar="HOST:PORT",
    help="Where the SuperLink is.",
)  # fmt: skip
WORDS = click.argument("more", nargs=-1, type=click.UNPROCESSED)


@click.group()
def flower() -> None:
    """Federate over real machines with Flower (docs/flower.md).

    One machine runs `superlink`, each site runs `supernode` with its own cache, and `run` starts a
    run. Features and images stay where they are; adapters and counts travel.
    """


@flower.command(context_settings=MORE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve at.")
@click.option("--port", default=8000, show_default=True, help="Port to serve at.")
@click.option("--certificates", type=PATH, help="Folder with ca.crt, server.pem, server.key.")
@INSECURE
@WORDS
def superlink(
    host: str, port: int, certificates: Path | None, insecure: bool, more: tuple[str, ...]
) -> None:
    """Start the SuperLink: the server of all sites. Runs until it is stopped.

    Without --certificates it serves this machine alone. Words behind -- go to flower-superlink.
    """
    _become(programs.superlink(host, port, certificates, insecure, more))


@flower.command(context_settings=MORE)
@click.argument("cache", type=PATH)
@AT
@click.option("--domain", help="The one domain of the cache that takes part. [default: all]")
@click.option("--client", help="The one client of a partition, as domain/0. [default: all]")
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option("--backend", default="auto", show_default=True, help="Kernels: auto, torch.")
@click.option("--port", default=0, help="Local port of the SuperNode's workers. [default: a free]")
@ROOT
@INSECURE
@WORDS
def supernode(
    cache: Path, superlink: str, domain: str | None, client: str | None, device: str, backend: str,
    port: int, root_certificates: Path | None, insecure: bool, more: tuple[str, ...],
) -> None:  # fmt: skip
    """Start a site's SuperNode on its own CACHE. Runs until it is stopped.

    Words behind -- go to flower-supernode.
    """
    if not cache.is_file():
        raise ConfigError(f"{cache}: there is no such cache; ./run.sh extract makes one")
    own = {"cache": str(cache.resolve()), "domain": domain, "client": client, "device": device}
    named = {name: value for name, value in {**own, "backend": backend}.items() if value}
    command = programs.supernode(
        superlink, named, port or _free_port(), root_certificates, insecure, more
    )
    _become(command)


@flower.command(cls=ReleasedSpellings)
@AT
@click.option("--sites", required=True, type=click.IntRange(1), help="SuperNodes to wait for.")
@click.option(
    "--min-sites", type=click.IntRange(1), help="Fewer answers end the run. [default: 2, of one 1]"
)
@click.option("--wait", default=600.0, show_default=True, help="Seconds to wait for the sites.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds a round may take.")
@click.option("--held-out", default="none", metavar="DOMAIN|none", show_default=True,
              help="Domain no client trains on; a,b holds out both.")  # fmt: skip
@click.option("--cache", type=PATH, help="On the SuperLink's machine: held-out rows to test on.")
@config_options
@click.option("--out", type=PATH, help="Run folder there. [default: runs/<run_id>]")
@click.option("--force", is_flag=True, help="Train again in a folder that holds a run.")
@ROOT
@INSECURE
def run(
    superlink: str, sites: int, min_sites: int | None, wait: float, timeout: float, held_out: str,
    cache: Path | None, preset: str, out: Path | None, force: bool, root_certificates: Path | None,
    insecure: bool, **settings,
) -> None:  # fmt: skip
    """Start a run of the connected sites, show its log and wait for its end.

    Sites are not trusted: without --method or --clip, method median.

    \b
        ./run.sh flower run --sites 3 --held-out sketch --rounds 50
    """
    names = () if held_out == "none" else tuple(dict.fromkeys(held_out.split(",")))
    given = given_settings(preset, settings)
    if "method" not in given and not given.get("clip"):
        given["method"] = "median"  # as long as fewer than half of the clients lie
        say("sites are not trusted: method median; pass --method fedavg to average")
    if settings["choose"] is None and given.get("choose") == "loss":  # of the preset
        given["choose"] = "accuracy"
        say("sites answer with counts, not losses: rounds are chosen by accuracy")
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
            say(click.unstyle(line).rstrip("\n"))  # Flower colours its lines
            started = started or re.search(r"started run (\d+)", line)
    if started is None:
        raise ConfigError("Flower started no run; what it says stands above")
    listing = [flwr, "ls", "--run-id", started[1], "--format", "json", programs.NAME]
    told = subprocess.run(listing, env=env, capture_output=True, text=True, check=False).stdout
    try:
        status = json.loads(told)["runs"][0]["status"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(f"Flower does not say how run {started[1]} ended: {told[:300]}") from None
    if status != "finished:completed":
        raise ConfigError(f"run {started[1]} ended as {status}; its log stands above")
    return 0


def _become(command: list[str]) -> None:
    os.execve(command[0], command, programs.environment())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
