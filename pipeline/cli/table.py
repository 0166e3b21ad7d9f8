"""The command table: parse, call, print. Heavy packages are imported inside it."""

import json

import click

from pipeline.cli.console import say, show_table
from pipeline.cli.options import PATH
from pipeline.errors import ConfigError


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN|SWEEP...", type=PATH)
@click.option(
    "--by",
    metavar="SETTING,...",
    help="Settings that make the rows. [default: all settings that differ, else method]",
)
@click.option(
    "--columns",
    type=click.Choice(["domains", "summary"]),
    default="domains",
    show_default=True,
    help="Accuracy on each held-out domain and their mean, or unseen, participants and overall.",
)
@click.option(
    "--against",
    metavar="ROW",
    help="Also show differences from this row or zero-shot, paired by seed.",
)
@click.option(
    "--best",
    is_flag=True,
    help="Only each sweep's best configuration by validation; with --by one for each row.",
)
@click.option(
    "--format",
    "written",
    type=click.Choice(["text", "latex", "csv", "markdown"]),
    default="text",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one a cell.")
def table(
    paths: tuple,
    by: str | None,
    columns: str,
    against: str | None,
    best: bool,
    written: str,
    as_json: bool,
) -> None:
    """Compare test accuracies of runs and sweeps, mean and standard deviation over seeds.

    Also takes folders of runs and sweeps. Unfinished ones are left out and listed. CSV and JSON
    hold fractions; their explanation is printed to stderr.

    \b
        ./run.sh table runs/sweep-0a1b2c3d4e5f
        ./run.sh table runs --by method --columns summary --against fedavg
        ./run.sh table runs/one runs/two --format latex
    """
    from pipeline.reports.table_formats import FORMATS
    from pipeline.reports.table_words import foot, head
    from pipeline.reports.tables import build_table, records_of

    if as_json and written != "text":
        raise ConfigError(f"--json and --format {written} exclude each other; give one of them")
    names = by.split(",") if by is not None else ()
    made = build_table(paths, by=names, columns=columns, best=best, against=against)
    for note in made.read.notes:
        say(note)
    if as_json or written == "csv":
        for line in (*head(made), *foot(made)):
            say(line)
    show_table(json.dumps(records_of(made)) if as_json else FORMATS[written](made))
