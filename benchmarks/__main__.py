"""python -m benchmarks: check, time, save and print."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch

    from benchmarks.compare import Fault
    from benchmarks.rows import Row

BENCHMARKS = (
    "kernels", "peers", "contrastive", "trials", "local", "round", "closed-form", "extract",
)  # fmt: skip
LATE = 30  # seconds after which --quick skips compiling, which takes 7 on an idle machine
NAMED = ("peers", "contrastive", "trials", "local")  # --quick skips these unless they are named


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(BENCHMARKS))
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option("--quick", is_flag=True, help="Smaller and shorter: about a minute on two cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of the table.")
@click.option("--readme", is_flag=True, help="Measure nothing; regenerate the docs' tables.")
def bench(names: tuple[str, ...], device: str, quick: bool, as_json: bool, readme: bool) -> None:
    """Time kernels, peers, steps of other heads, whole runs and extraction; by default, all.

    peers: a training step next to eager and compiled torch, JAX, and this machine's floor, on one
    core; contrastive: the loss by number of pairs, likewise; trials: a sweep next to Optuna and
    JAX.

    Every kernel is first checked against float64. A kernel with more than twice plain torch's error
    is reported and not timed; one that fails is reported. The others still run, and the exit code
    is 1. Results are saved in benchmarks/results/ by machine and date, with plots; --quick only
    prints them, and skips peers, contrastive, trials and local unless they are named.
    """
    from kernels.backends import BackendUnavailable

    if readme:
        from benchmarks.readme import rewrite

        rewrite()
        return
    default = [name for name in BENCHMARKS if not (quick and name in NAMED)]
    try:
        sound = _bench(names or default, device, quick, as_json)
    except BackendUnavailable as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0 if sound else 1)


def _bench(names: Sequence[str], device: str, quick: bool, as_json: bool) -> bool:
    """Measure, print and save; returns whether every case was correct."""
    from benchmarks import machine, plots, rows
    from kernels.backends import pick_device

    where = pick_device(device)
    described = machine.describe(where)
    click.echo(f"measuring on {machine.name_of(described)}, {where.type}", err=True)
    described["ceilings"] = machine.ceilings(where, quick)
    if as_json:
        click.echo(json.dumps({"machine": described}))
    found, faults = [], 0
    for one in _measure(names, where, described["ceilings"], quick):
        if isinstance(one, rows.Row):
            found.append(one)
            if as_json:
                click.echo(json.dumps(one.__dict__))
            else:  # a long run may be interrupted before the table
                click.echo(rows.line(one), err=True)
        else:
            faults += 1
            click.echo(f"Error: {one.benchmark}, {one.case}: {one.why}", err=True)
    if not as_json:
        click.echo(rows.table(found))
    if found and not quick:
        file = rows.write(found, described, machine.name_of(described))
        pictures = plots.plot_all(rows.read(file)[1], file)
        kept = ", ".join([str(file), *(picture.name for picture in pictures)])
        click.echo(
            f"saved to {kept}; ./run.sh bench --readme regenerates the docs' tables", err=True
        )
    return not faults


def _measure(
    names: Sequence[str], where: "torch.device", ceilings: dict[str, float], quick: bool
) -> "Iterator[Row | Fault]":
    from benchmarks import (
        closed_form,
        compiling,
        extraction,
        kernels,
        kernels_cuda,
        local_steps,
        peers,
        products,
        rounds,
        rounds_cuda,
        trials,
    )
    from benchmarks.compare import guarded
    from kernels.backends import BACKENDS

    began = time.monotonic()

    def late() -> bool:
        if time.monotonic() - began < LATE:
            return False
        click.echo("compile is skipped: this machine is too busy for --quick", err=True)
        return True

    numba, cuda = "numba" in BACKENDS[where.type], where.type == "cuda"
    parts = {
        "kernels": (
            (numba, lambda: products.run(ceilings, quick)),
            (True, lambda: kernels.run(where, ceilings, quick)),
            (numba, lambda: [] if quick and late() else compiling.run(quick)),
            (cuda, lambda: kernels_cuda.run(where, ceilings, quick)),
        ),
        "peers": ((numba, lambda: peers.run(quick)),),
        "contrastive": ((True, lambda: kernels.contrastive_by_count(where, ceilings, quick)),),
        "trials": ((numba and not cuda, lambda: trials.run(quick)),),
        "local": ((True, lambda: local_steps.run(where, ceilings, quick)),),
        "round": (
            (True, lambda: rounds.run(where, quick)),
            (cuda, lambda: rounds_cuda.run(where, ceilings, quick)),
        ),
        "closed-form": ((True, lambda: closed_form.run(where, ceilings, quick)),),
        "extract": ((True, lambda: extraction.run(where, quick)),),
    }
    for name in names:
        click.echo(f"{name} ...", err=True)
        for here, part in parts[name]:
            if here:
                yield from guarded(name, "", part)


if __name__ == "__main__":
    bench(prog_name="bench")
