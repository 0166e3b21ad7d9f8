"""The commands: parse, call one function, print. Heavy packages are imported inside commands."""

import sys
import traceback
from pathlib import Path

import click

from pipeline.cli.cache import cache
from pipeline.cli.command import PATH, Group, option
from pipeline.cli.console import show
from pipeline.cli.extract import extract
from pipeline.cli.federate import federate
from pipeline.cli.flower import flower
from pipeline.cli.predict import predict
from pipeline.cli.report import report
from pipeline.cli.reproduce import reproduce
from pipeline.cli.runs import runs
from pipeline.cli.sweep import sweep
from pipeline.cli.table import table
from pipeline.datasets.counts import DOWNLOADS
from pipeline.missing import refuse_missing_package
from pipeline.places import DATA
from pipeline.shortage import prepare_for_limit, shortage
from pipeline.terminal import printable


class Commands(Group):
    """Shows errors that a user can cause as one line; bugs keep their traceback.

    Exit codes: 0 done; 1 invalid setting or run; 2 usage; 3 mismatched cache; 4 damaged, incomplete
    or unknown cache or name in it; 5 device or backend not available; 6 images or data set; 7 CLIP
    weights; 130 and 143 stopped by SIGINT and SIGTERM after saving finished work.
    """

    def main(self, *args, standalone_mode: bool = True, **settings):
        """As click's, but a SIGINT at any moment exits with 130; click's code is 1."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **settings)
        try:
            code = super().main(*args, standalone_mode=False, **settings)
        except click.ClickException as error:
            shown = _one_line(error)
            error.format_message = lambda: shown
            error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            code = 130
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        """As click's, after a check of limits under which libraries would hang or crash."""
        found = super().resolve_command(ctx, args)
        if found[0] and not {"--help", "-h"} & set(args):
            prepare_for_limit(found[0])
        return found

    def invoke(self, ctx: click.Context):
        """Runs the command; an error with an exit_code is shown as one line and sets that code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # nothing was under way that needs a message
            ctx.exit(130)
        except ModuleNotFoundError as error:
            refuse_missing_package(error)
            raise
        except Exception as error:
            if short := shortage(error):
                raise click.ClickException(short) from error
            code = getattr(type(error), "exit_code", None) or getattr(error, "exit_code", None)
            if isinstance(error, click.ClickException):
                raise
            if isinstance(code, int):
                shown = click.ClickException(str(error))
                shown.exit_code = code
            elif isinstance(error, OSError) and error.errno is not None:
                shown = click.ClickException(_of_the_system(error))
            else:
                raise
            raise shown from error


def _one_line(error: click.ClickException) -> str:
    if isinstance(error, click.MissingParameter):  # a list of click's own, a line each
        return " ".join(error.format_message().split())
    return printable(error.format_message().strip())


def _of_the_system(error: OSError) -> str:
    """The system's error, with the file, or with the function if no file is named."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = " -> ".join(names) or f"{last.name} ({last.filename}:{last.lineno})"
    return f"{where}: {error.strerror or error}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """FedCLIP from a feature cache: extract once, federate many times."""


@cli.command()
@click.argument("dataset", type=click.Choice(DOWNLOADS), help="The data set.")
@option("--root", type=PATH, default=DATA, note="data", help="Folder for data sets.")
@option("--url", help="Address to download the archive from instead of the known one.")
@option("--hub", is_flag=True, help="Download the Hugging Face hub's parquet files instead.")
def download(dataset: str, root: Path, url: str | None, hub: bool) -> None:
    """Download a public data set, unpack it and check its image counts."""
    from pipeline.datasets.fetch import download_dataset, download_from_hub

    if url and hub:
        raise click.UsageError("--url and --hub exclude each other")
    show(download_from_hub(dataset, root) if hub else download_dataset(dataset, root, url=url))


for command in (extract, federate, sweep, cache, flower, predict, report, reproduce, runs, table):
    cli.add_command(command)
