"""python -m benchmarks: check, time, keep and show."""

import json
import sys

import click

BENCHMARKS = ("kernels", "local", "round", "closed-form", "extract")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(BENCHMARKS))
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option("--quick", is_flag=True, help="Smaller and fewer: about a minute on two cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines in place of the table.")
@click.option("--readme", is_flag=True, help="Measure nothing: make the docs' tables anew.")
def bench(names: tuple[str, ...], device: str, quick: bool, as_json: bool, readme: bool) -> None:
    """Time kernels, steps of other heads, whole runs and extraction; all when none is named.

    Every kernel is checked against float64 first: one that errs more than twice as much as plain
    torch ends the command with exit code 1. Results are kept in benchmarks/results/ by machine and
    date, with pictures; those of --quick are only printed, and leave out local unless it is named.
    """
    from benchmarks.compare import Wrong
    from kernels.backends import BackendUnavailable

    if readme:
        from benchmarks.readme import rewrite

        rewrite()
        return
    try:
        default = [name for name in BENCHMARKS if not (quick and name == "local")]
        described, found = _measure(names or default, device, quick)
    except (BackendUnavailable, Wrong) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(type(error), "exit_code", 1))
    from benchmarks import machine, plots, rows

    if as_json:
        for line in [{"machine": described}, *(row.__dict__ for row in found)]:
            click.echo(json.dumps(line))
    else:
        click.echo(rows.table(found))
    if not quick:
        file = rows.write(found, described, machine.name_of(described))
        pictures = plots.plot_all(rows.read(file)[1], file)
        kept = ", ".join([str(file), *(picture.name for picture in pictures)])
        click.echo(
            f"kept in {kept}; ./run.sh bench --readme makes the docs' tables anew",
            err=True,
        )


def _measure(names: tuple[str, ...], device: str, quick: bool) -> tuple[dict, list]:
    from benchmarks import (
        closed_form,
        compiling,
        extraction,
        kernels,
        kernels_cuda,
        local_steps,
        machine,
        products,
        rounds,
        rounds_cuda,
    )
    from kernels.backends import BACKENDS, pick_device

    where = pick_device(device)
    described = machine.describe(where)
    click.echo(f"measuring on {machine.name_of(described)}, {where.type}", err=True)
    described["ceilings"] = machine.ceilings(where, quick)
    found = []
    for name in names:
        click.echo(f"{name} ...", err=True)
        if name == "kernels":
            numba = "numba" in BACKENDS[where.type]
            found += products.run(described["ceilings"], quick) if numba else []
            found += kernels.run(where, described["ceilings"], quick)
            found += compiling.run(quick) if numba else []
            if where.type == "cuda":
                found += kernels_cuda.run(where, described["ceilings"], quick)
        elif name == "local":
            found += local_steps.run(where, described["ceilings"], quick)
        elif name == "round":
            found += rounds.run(where, quick)
            if where.type == "cuda":
                found += rounds_cuda.run(where, described["ceilings"], quick)
        elif name == "closed-form":
            found += closed_form.run(where, described["ceilings"], quick)
        else:
            found += extraction.run(where, quick)
    return described, found


if __name__ == "__main__":
    bench(prog_name="bench")
