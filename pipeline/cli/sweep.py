"""The command sweep: parse, call, print. Heavy packages are imported inside it."""

import dataclasses
import json
import math
import re
from pathlib import Path

import click

from pipeline.cli.console import find_cache, say, show_table, tell_report
from pipeline.cli.options import (
    PATH,
    ReleasedSpellings,
    cache_options,
    choose_held_out,
    config_options,
    fold_options,
    given_settings,
    where_options,
)
from pipeline.encoder.towers import Towers
from pipeline.errors import ConfigError
from pipeline.places import RUNS
from pipeline.settings import RunConfig

MEMBERS_OWN = ("joined", "cache", "budget", "memory", "select", "as_json")
"""What may be said beside --join."""


def seconds(words: str) -> float:
    """90, 90s, 2m, 1.5h -> seconds; raises ConfigError for other words."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([smh]?)", words.strip())
    if not found:
        raise ConfigError(f"--budget {words!r}: write seconds, or 90s, 2m, 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def byte_count(words: str) -> int:
    """500M, 4G, 4GiB -> bytes; raises ConfigError for other words."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmgt]?)i?b?", words.strip(), re.IGNORECASE)
    if not found:
        raise ConfigError(f"--memory {words!r}: write bytes, or 500M, 4G")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


@click.command(cls=ReleasedSpellings)
@cache_options
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=VALUES",
    help="lr=5e-5,3e-4 tries each; with --random also lr=1e-5..1e-2. Any setting below; repeat it.",
)
@click.option("--random", "draws", type=int, help="Draw so many configurations from the --grid.")
@click.option("--seeds", default=1, show_default=True, help="Train each with seeds 0, 1, ...")
@click.option("--spec", type=PATH, help="W&B sweep YAML in place of --grid.")
@click.option("--halving", type=int, metavar="ETA", help="At rungs go on with the best 1/ETA only.")
@click.option("--draw-seed", default=0, show_default=True, help="Fixes what random draws.")
@click.option("--budget", metavar="TIME", help="Begin no round after 90s, 2m, 1.5h.")
@click.option("--memory", metavar="BYTES", help="For trials side by side: 500M, 4G.")
@click.option(
    "--select",
    default="validation",
    show_default=True,
    type=click.Choice(["validation", "oracle"]),
    help="oracle looks at test accuracy: an upper bound, not a result.",
)
@fold_options
@config_options
@click.option(
    "--join",
    "joined",
    type=PATH,
    metavar="DIR",
    help="Help with the sweep in DIR, begun here or on another machine that shares the disk.",
)
@click.option("--out", type=PATH, help="[default: runs/sweep-<id>]")
@where_options
@click.option("--force", is_flag=True, help="Start anew in a folder that holds a sweep.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sweep(
    cache: Path | None,
    dataset: str | None,
    model: str | None,
    towers: Towers,
    root: Path | None,
    grid: tuple[str, ...],
    draws: int | None,
    seeds: int,
    spec: Path | None,
    halving: int | None,
    draw_seed: int,
    budget: str | None,
    memory: str | None,
    select: str,
    held_out: tuple[str, ...],
    test_envs: tuple[int, ...],
    preset: str,
    joined: Path | None,
    out: Path | None,
    device: str,
    backend: str,
    force: bool,
    as_json: bool,
    **settings,
) -> None:
    """Train many configurations on one cache, side by side, and say which is best.

    What is not swept is set by the same options as federate's. A killed sweep goes on with the
    same command. Selection is by validation accuracy only.

    \b
        ./run.sh sweep cache.h5 --grid lr=5e-5,3e-4,1e-3 --grid weight_decay=0,0.2 --seeds 3
        ./run.sh sweep cache.h5 --grid lr=1e-5..1e-2 --random 64 --halving 3
        ./run.sh sweep cache.h5 --spec sweep.yaml --budget 10m
        ./run.sh sweep --join DIR          # on further machines, DIR as in --out on the first
    """
    if joined is not None:
        _join(joined, cache, budget, memory, select, as_json)
        return
    given = given_settings(preset, settings)
    rounds = RunConfig(rounds=given.get("rounds", RunConfig.rounds)).rounds
    limit = math.inf if budget is None else seconds(budget)
    room = None if memory is None else byte_count(memory)
    asked = _spec(spec, grid, draws, seeds, halving, draw_seed, rounds)
    from pipeline.sweeps.search import base_of

    base = base_of(asked, given)  # refuses settings that cannot be before anything slow happens
    words, file = find_cache(cache, dataset, model, root, device, towers)
    from cache.store import read_table
    from pipeline.sweeps.best import sweep_table
    from pipeline.sweeps.run import sweep as run

    table = read_table(file)
    document = run(
        table,
        asked,
        dataclasses.replace(base, held_out=choose_held_out(table, held_out, test_envs)),
        runs=RUNS,
        out=out,
        device=device,
        backend=backend,
        memory=room,
        budget=limit,
        select=select,
        cache=words,
        force=force,
        say=say,
    )
    show_table(json.dumps(document, allow_nan=False) if as_json else sweep_table(document))
    tell_report(Path(document["sweep"]), file, as_json)


def _join(
    folder: Path,
    cache: Path | None,
    budget: str | None,
    memory: str | None,
    select: str,
    as_json: bool,
) -> None:
    context = click.get_current_context()
    named = click.core.ParameterSource.COMMANDLINE
    for option in context.command.params:
        own = option.name in MEMBERS_OWN
        if not own and context.get_parameter_source(option.name) == named:
            raise ConfigError(
                f"--join: the sweep in {folder} says what is swept, where and how; leave out "
                f"{option.opts[0]}"
            )
    limit = math.inf if budget is None else seconds(budget)
    room = None if memory is None else byte_count(memory)
    from pipeline.sweeps.best import sweep_table
    from pipeline.sweeps.join import join
    from pipeline.sweeps.run import read_shared

    document = join(folder, cache=cache, memory=room, budget=limit, select=select, say=say)
    show_table(json.dumps(document, allow_nan=False) if as_json else sweep_table(document))
    tell_report(folder, cache or Path(read_shared(folder).cache), as_json)


def _spec(
    file: Path | None,
    grid: tuple[str, ...],
    draws: int | None,
    seeds: int,
    halving: int | None,
    draw_seed: int,
    rounds: int,
):
    from pipeline.sweeps.spec import from_options
    from pipeline.sweeps.wandb import from_wandb, read_yaml

    if file is None:
        return from_options(grid, draws=draws, seeds=seeds, halving=halving, draw_seed=draw_seed)
    if grid or draws is not None:
        raise ConfigError("--spec says what is swept; leave out --grid and --random")
    return from_wandb(
        read_yaml(file), rounds=rounds, seeds=seeds, halving=halving, draw_seed=draw_seed
    )
