"""The command runs: parse, call, print. Heavy packages are imported inside it."""

import json
import logging
from pathlib import Path

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import grow_results, show, show_table
from pipeline.cli.options import csv_option
from pipeline.errors import ConfigError
from pipeline.places import RUNS

LOG = logging.getLogger(__name__)
ORDERS = ("newest", "name", "data", "method", "validation", "test", "gain", "seconds")


@click.command(cls=Command)
@click.argument(
    "folders", nargs=-1, metavar="[FOLDER...]", type=PATH,
    help="Folders of runs and sweeps. [default: runs]",
)  # fmt: skip
@option(
    "--filter", "filters", multiple=True, metavar="NAME=VALUE|WORD",
    help="List only what has this setting or fact (`method=fedavg`, `lr=1e-3`, `dataset=demo`, "
    "`status=unfinished`) or this word anywhere; can be repeated, all must hold.",
)  # fmt: skip
@option("--tag", "tags", multiple=True, help="List only what has this tag; can be repeated.")
@option(
    "--sort", type=click.Choice(ORDERS), default="newest", show_default=True,
    help="What the list is sorted by.",
)  # fmt: skip
@option("--out", type=PATH, note="index.html in the folder", help="HTML page to write.")
@csv_option
@option("--json", "as_json", is_flag=True, help="Print a list of objects, one for each run.")
def runs(
    folders: tuple[Path, ...],
    filters: tuple[str, ...],
    tags: tuple[str, ...],
    sort: str,
    out: Path | None,
    csv: Path | None,
    as_json: bool,
) -> None:
    """List runs and sweeps, and write a page that lays their curves over each other.

    The page has all of them, with a filter of its own. Damaged runs are listed as such.

    \b
        ./run.sh runs
        ./run.sh runs --filter method=fedavg --filter dataset=demo --sort test
        ./run.sh runs experiments --tag paper --csv results.csv
    """
    from pipeline.json_files import replace_file
    from pipeline.reports.listing import (
        DAMAGED,
        expanded,
        is_result,
        list_records,
        list_text,
        matches,
        ordered,
        read_listed,
    )
    from pipeline.reports.page import INDEX, index_html

    places = folders or (RUNS,)
    for place in folders:
        if not place.is_dir():
            raise ConfigError(f"{place}: no such folder; pass a folder of runs")
    found = [each for each, _ in expanded(places) if is_result(each)]
    every = ordered(map(read_listed, found), sort)
    wanted = [*filters, *(f"tag={tag}" for tag in tags)]
    rows = [row for row in every if all(matches(row, each) for each in wanted)]
    if not rows:
        what = "none matches" if every else "there are none yet"
        LOG.info("%s: %s", ", ".join(map(str, places)), f"{len(every)} runs and sweeps, {what}")
    if as_json:
        show(json.dumps(list_records(rows)))
    elif rows:
        show_table(list_text(rows))
    grow_results(csv, [row.folder for row in rows if row.status != DAMAGED], as_json)
    if every:
        page = out or (places[0] if not is_result(places[0]) else places[0].parent) / INDEX
        title = f"{len(every)} runs and sweeps in {page.resolve().parent.name}"
        file = replace_file(page, index_html(every, page.parent, title))
        LOG.info("%s", file) if as_json else show(file)
