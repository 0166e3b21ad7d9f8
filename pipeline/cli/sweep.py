"""The command sweep: parse, call, print. Heavy packages are imported inside it."""

import dataclasses
import json
import math
import re
from pathlib import Path

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import (
    find_cache,
    grow_results,
    load_table,
    show_comparison,
    show_report,
    show_table,
)
from pipeline.cli.options import Job, connection, job_options, ray_options
from pipeline.errors import ConfigError
from pipeline.imports import uncollected
from pipeline.places import RUNS
from pipeline.settings import RunConfig


def seconds(words: str) -> float:
    """90, 90s, 2m, 1.5h -> seconds; raises ConfigError for anything else."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([smh]?)", words.strip())
    if not found:
        raise ConfigError(f"--budget {words!r}: pass seconds, or a time such as 90s, 2m or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def byte_count(words: str) -> int:
    """500M, 4G, 4GiB -> bytes; raises ConfigError for anything else."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmgt]?)i?b?", words.strip(), re.IGNORECASE)
    if not found:
        raise ConfigError(f"--memory {words!r}: pass bytes, or a size such as 500M or 4G")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


TRY = "What to try"


@click.command(cls=Command)
@job_options(
    option(
        "--grid", multiple=True, metavar="NAME=VALUES", section=TRY,
        help="Try values of a setting: lr=5e-5,3e-4 tries both, and with --random lr=1e-5..1e-2 "
        "draws from the range. Takes any setting below and can be repeated.",
    ),
    option(
        "--random", "draws", type=int, metavar="N", section=TRY,
        help="Draw N configurations from the --grid instead of trying all.",
    ),
    option(
        "--seeds", default=1, show_default=True, metavar="N", section=TRY,
        help="Train each configuration with seeds 0 to N-1.",
    ),
    option("--spec", type=PATH, section=TRY, help="W&B sweep file (YAML) in place of --grid."),
    option(
        "--halving", type=int, metavar="ETA", section=TRY,
        help="Successive halving: keep the best 1/ETA at each rung.",
    ),
    option("--draw-seed", default=0, show_default=True, section=TRY, help="Seed of --random."),
    option(
        "--budget", metavar="TIME", section=TRY,
        help="Do not start a round after this time, such as 90s, 2m or 1.5h.",
    ),
    option(
        "--memory", metavar="BYTES", section=TRY, note="half of the free memory, 0.8 on a GPU",
        help="Memory for trials that train side by side, such as 500M or 4G.",
    ),
    option(
        "--select", default="validation", show_default=True, section=TRY,
        type=click.Choice(["validation", "oracle"]),
        meanings={
            "validation": "By validation accuracy (or loss, with --choose loss).",
            "oracle": "By test accuracy: an upper bound, not a result.",
        },
        help="How the best configuration is selected.",
    ),
    *ray_options,
    out="runs/sweep-<id>",
)  # fmt: skip
def sweep(
    job: Job,
    given: dict,
    grid: tuple[str, ...],
    draws: int | None,
    seeds: int,
    spec: Path | None,
    halving: int | None,
    draw_seed: int,
    budget: str | None,
    memory: str | None,
    select: str,
    ray: str | None,
    ray_worker: str | None,
) -> None:
    """Train many configurations on one cache side by side and show the best.

    Settings that are not swept have the same options as in federate. To resume a killed sweep, run
    the same command again. The best is selected by validation accuracy only.

    \b
        ./run.sh sweep cache.h5 --grid lr=5e-5,3e-4,1e-3 --grid weight_decay=0,0.2 --seeds 3
        ./run.sh sweep cache.h5 --grid lr=1e-5..1e-2 --random 64 --halving 3
        ./run.sh sweep cache.h5 --spec sweep.yaml --budget 10m
        ./run.sh sweep cache.h5 --grid lr=1e-5..1e-2 --random 64 --ray auto --ray-worker gpus=1
    """
    limit = math.inf if budget is None else seconds(budget)
    room = None if memory is None else byte_count(memory)
    rounds = RunConfig(rounds=given.get("rounds", RunConfig.rounds)).rounds
    asked = _spec(spec, grid, draws, seeds, halving, draw_seed, rounds)
    from pipeline.sweeps.search import base_of

    base = base_of(asked, given)  # refuses invalid settings before anything slow happens
    words, file = find_cache(job)
    with uncollected():
        from pipeline.sweeps.best import sweep_table
        from pipeline.sweeps.run import sweep as run

    table = load_table(file)
    with connection(ray, ray_worker) as size:
        if size is not None:
            from pipeline.cluster.sweep import OnRay

        document = run(
            table,
            asked,
            dataclasses.replace(base, held_out=job.folds(table)),
            runs=RUNS,
            out=job.out,
            device=job.device,
            backend=job.backend,
            memory=room,
            budget=limit,
            select=select,
            cache=words,
            force=job.force,
            name=job.name,
            tags=job.tags,
            pool=None if size is None else OnRay(size, job.device),
        )
    show_table(json.dumps(document, allow_nan=False) if job.as_json else sweep_table(document))
    if not job.as_json and select != "oracle":  # it says that test accuracy selected nothing
        show_comparison(Path(document["sweep"]))
    grow_results(job.csv, [Path(document["sweep"])], job.as_json)
    show_report(Path(document["sweep"]), file, job.as_json)


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
        raise ConfigError("--spec lists what is swept; leave out --grid and --random")
    return from_wandb(
        read_yaml(file), rounds=rounds, seeds=seeds, halving=halving, draw_seed=draw_seed
    )
