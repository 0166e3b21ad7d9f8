"""python -m benchmarks: check, time, keep and show."""

import json
import sys

import click

BENCHMARKS = ("kernels", "round", "extract")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(BENCHMARKS))
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option("--quick", is_flag=True, help="Smaller and fewer: about a minute on two cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines in place of the table.")
def bench(names: tuple[str, ...], device: str, quick: bool, as_json: bool) -> None:
    """Time kernels, whole runs and extraction; all three when none is named.

    Every kernel is checked against float64 first: one that errs more than twice as much as plain
    torch ends the command with exit code 1. Results are kept in benchmarks/results/ by machine and
    date, with a picture; those of --quick are only printed.
    """
    from benchmarks import extraction, kernels, machine, rounds, rows
    from kernels.backends import BackendUnavailable, pick_device

    try:
        where = pick_device(device)
        described = machine.describe(where)
        click.echo(f"measuring on {machine.name_of(described)}, {where.type}", err=True)
        found: list[rows.Row] = []
        for name in names or BENCHMARKS:
            click.echo(f"{name} ...", err=True)
            if name == "kernels":
                described["ceilings"] = machine.ceilings(where, quick)
                found += kernels.run(where, described["ceilings"], quick)
            elif name == "round":
                found += rounds.run(where, quick)
            else:
                found += extraction.run(where, quick)
    except (BackendUnavailable, kernels.Wrong) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(type(error), "exit_code", 1))
    if as_json:
        for line in [{"machine": described}, *(row.__dict__ for row in found)]:
            click.echo(json.dumps(line))
    else:
        click.echo(rows.table(found))
    if not quick:
        file = rows.write(found, described, machine.name_of(described))
        rows.plot(rows.read(file)[1], file.with_suffix(".png"))
        click.echo(f"kept in {file} and {file.with_suffix('.png').name}", err=True)


if __name__ == "__main__":
    bench(prog_name="bench")
