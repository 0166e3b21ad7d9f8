"""The command cache merge, and which shard extract is. Heavy packages are imported inside them."""

import os
from pathlib import Path

import click

from pipeline.cli.console import say, show
from pipeline.cli.options import PATH


def named_shard(words: str | None) -> dict:
    """What extract is told of its shard: --shard's words, or what a launcher says beside it."""
    from pipeline.extraction.shards import launched_task

    task = launched_task(os.environ, say if words is None else lambda message: None)
    return {"shard": words or (task.shard if task else None), "card": task.local if task else None}


@click.command()
@click.argument("shards", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="[default: the shards' name without .shard-I-of-N]")
@click.option("--force", is_flag=True, help="Replace a cache that is there.")
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(["duplicates"]),
    help="Images with a copy in another domain or split are intended.",
)
def merge(shards: tuple[Path, ...], out: Path | None, force: bool, accept: tuple[str, ...]) -> None:
    """Join all shards of one extraction into the cache that it would be in one piece.

    \b
        ./run.sh cache merge cache/files/pacs-ViT-B-32.shard-*-of-8.h5
    """
    from pipeline.extraction.shards import merge as merge_files

    show(merge_files(shards, out, force=force, accept=accept, say=say))
