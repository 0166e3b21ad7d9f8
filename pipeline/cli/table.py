"""The command table: parse, call, print. Heavy packages are imported inside it."""

import json
import logging

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import show_table
from pipeline.errors import ConfigError

LOG = logging.getLogger(__name__)


@click.command(cls=Command)
@click.argument(
    "paths", nargs=-1, required=True, metavar="RUN|SWEEP...", type=PATH,
    help="Runs, sweeps, and folders that hold them.",
)  # fmt: skip
@option(
    "--by", metavar="SETTING,...", note="all settings that differ, else method",
    help="Settings whose values get a row each.",
)  # fmt: skip
@option(
    "--columns", type=click.Choice(["domains", "summary"]), default="domains", show_default=True,
    meanings={
        "domains": "Accuracy on each held-out domain, and the mean.",
        "summary": "Accuracy on unseen domains, on participants and overall.",
    },
    help="What the columns show.",
)  # fmt: skip
@option(
    "--against", metavar="ROW",
    help="Also show differences from this row, paired by seed, or from zero-shot.",
)  # fmt: skip
@option(
    "--best", is_flag=True,
    help="Show only the best configuration of each sweep by validation; with --by, of each row.",
)  # fmt: skip
@option(
    "--format", "written", type=click.Choice(["text", "latex", "csv", "markdown"]),
    default="text", show_default=True, help="Format of the table.",
)  # fmt: skip
@option("--json", "as_json", is_flag=True, help="Print a list of objects, one for each cell.")
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
        raise ConfigError(
            f"--json and --format {written} cannot be combined; pass only one of them"
        )
    names = by.split(",") if by is not None else ()
    made = build_table(paths, by=names, columns=columns, best=best, against=against)
    for note in made.read.notes:
        LOG.warning("%s", note)
    if as_json or written == "csv":
        for line in (*head(made), *foot(made)):
            LOG.info("%s", line)
    show_table(json.dumps(records_of(made)) if as_json else FORMATS[written](made))
