"""The command cache merge: parse, call, print. Heavy packages are imported inside it."""

from pathlib import Path

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import show


@click.command(cls=Command)
@click.argument("shards", nargs=-1, required=True, type=PATH, help="The shards.")
@option(
    "--out", type=PATH, note="the shards' name without .shard-I-of-N", help="Cache file to write."
)
@option("--force", is_flag=True, help="Replace a cache that is already there.")
@option(
    "--accept", multiple=True, type=click.Choice(["duplicates"]),
    help="Accept images that have a copy in another domain or split.",
)  # fmt: skip
def merge(shards: tuple[Path, ...], out: Path | None, force: bool, accept: tuple[str, ...]) -> None:
    """Merge all shards of one extraction into one cache.

    \b
        ./run.sh cache merge cache/files/pacs-ViT-B-32.shard-*-of-8.h5
    """
    from pipeline.extraction.shards import merge as merge_files

    show(merge_files(shards, out, force=force, accept=accept))
