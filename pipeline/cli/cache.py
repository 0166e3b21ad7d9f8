"""The commands of cache: show, verify, import, export and merge cache files."""

import json
import logging
from pathlib import Path

import click

from pipeline.cli.command import PATH, Group, option
from pipeline.cli.console import show
from pipeline.cli.merge import merge
from pipeline.cli.options import json_option
from pipeline.places import CACHES
from pipeline.terminal import printable

LOG = logging.getLogger(__name__)
FILE = click.argument("file", type=PATH, help="Cache file.")


@click.group(cls=Group)
def cache() -> None:
    """Show, verify, import, export and merge cache files."""


@cache.command()
@FILE
@json_option
def info(file: Path, as_json: bool) -> None:
    """Show a cache's contents and progress."""
    from cache.store import info as run

    facts = run(file)
    if as_json:
        show(json.dumps(facts))
        return
    identity = facts.pop("identity")
    for name, value in facts.items():
        if value is not None:  # as the shard of a whole cache
            show(f"{name:<16} {_shown(value)}")
    show("made from:")
    for name, value in identity.items():
        if name not in facts:
            show(f"  {printable(name):<16} {_shown(value)}")


def _shown(value: object) -> str:
    """A fact for people: "3,000", "yes", "a, b", "width 128; resolution 48"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return "; ".join(f"{printable(key)} {_nested(inner)}" for key, inner in value.items())
    return printable(value)


def _nested(value: object) -> str:
    return f"({_shown(value)})" if isinstance(value, dict) else _shown(value)


@cache.command()
@FILE
def verify(file: Path) -> None:
    """Read every byte of a cache and compare it with the checksums."""
    from cache.store import verify as run

    run(file)
    show(f"{file}: every byte matches its checksum")


@cache.command("import")
@click.argument("npz", type=PATH, help="The .npz file.")
@option("--out", type=PATH, note="cache/files/<name>.h5", help="Cache file to write.")
@option("--force", is_flag=True, help="Replace a cache that is already there.")
@option("--dataset-name", "dataset", note="name of the file", help="Name of the data set.")
@option(
    "--feature-scale", type=float, default=1.0, show_default=True,
    help="Factor for the features: 10 makes unit rows about as long as raw ViT-B/32 features.",
)  # fmt: skip
@option(
    "--logit-scale", type=float, note="from the file",
    help="Logit scale of the model; 100 for every released CLIP.",
)  # fmt: skip
@option(
    "--labels-from", type=click.IntRange(0, 1), default=0, show_default=True,
    help="Number of the first label.",
)  # fmt: skip
@option(
    "--domains-from", type=click.IntRange(0, 1), default=0, show_default=True,
    help="Number of the first domain.",
)  # fmt: skip
@option(
    "--ignore", multiple=True, metavar="KEY",
    help="Key to leave out although it resembles a known one; can be repeated.",
)  # fmt: skip
def import_(npz: Path, out: Path | None, force: bool, **settings) -> None:
    """Convert an .npz with features, labels and text_features to a cache (docs/cache-format.md)."""
    from cache.npz import read_npz
    from cache.store import write_table

    out = out or CACHES / f"{npz.stem}.h5"
    write_table(out, read_npz(npz, **settings), force=force)
    show(out)


@cache.command()
@FILE
@option("--out", type=PATH, note="FILE with .npz", help="The .npz file to write.")
@option("--force", is_flag=True, help="Replace a file that is already there.")
def export(file: Path, out: Path | None, force: bool) -> None:
    """Convert a cache to an .npz with the keys that import reads."""
    from cache.described import row_lengths, summary
    from cache.npz import not_exported, write_npz
    from cache.store import info as facts
    from cache.store import read_table

    out, table = out or file.with_suffix(".npz"), read_table(file)
    write_npz(table, out, force=force)
    for sentence in (*summary(table, row_lengths(table.features)), *not_exported(facts(file))):
        LOG.info("%s", sentence)
    show(out)


cache.add_command(merge)
