"""The commands of cache: look into, check, import and export cache files."""

import json
from pathlib import Path

import click

from pipeline.cli.console import say, show
from pipeline.cli.merge import merge
from pipeline.cli.options import PATH
from pipeline.places import CACHES
from pipeline.terminal import printable

FILE = click.argument("file", type=PATH)


@click.group()
def cache() -> None:
    """Look into, check, import and export cache files."""


@cache.command()
@FILE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(file: Path, as_json: bool) -> None:
    """What a cache holds and how far it is."""
    from cache.store import info as run

    facts = run(file)
    if as_json:
        show(json.dumps(facts))
        return
    identity = facts.pop("identity")
    for name, value in facts.items():
        if value is not None:  # as the shard of a whole cache
            show(f"{name:<16} {_shown(value)}")
    show("what it was made of:")
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
    """Read every byte of a cache and compare it with its checksums."""
    from cache.store import verify as run

    run(file)
    show(f"{file}: every byte is as it was written")


@cache.command("import")
@click.argument("npz", type=PATH)
@click.option("--out", type=PATH, help="[default: cache/files/<name>.h5]")
@click.option("--force", is_flag=True, help="Replace a cache that is there.")
@click.option("--dataset-name", "dataset", help="Name of the data set.  [default: the file's name]")
@click.option(
    "--feature-scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Multiply the features: 10 gives unit rows about the length of raw ViT-B/32 features.",
)
@click.option(
    "--logit-scale",
    type=float,
    help="The multiplier, instead of the file's; 100 for every released CLIP.",
)
@click.option("--labels-from", type=click.IntRange(0, 1), default=0, help="First label: 0 or 1.")
@click.option("--domains-from", type=click.IntRange(0, 1), default=0, help="First domain: 0 or 1.")
@click.option(
    "--ignore", multiple=True, metavar="KEY", help="A key to leave out that looks like another."
)
def import_(npz: Path, out: Path | None, force: bool, **settings) -> None:
    """Make a cache of an .npz: features, labels, text_features (and more, docs/cache-format.md)."""
    from cache.npz import read_npz
    from cache.store import write_table

    out = out or CACHES / f"{npz.stem}.h5"
    write_table(out, read_npz(npz, say=say, **settings), force=force)
    show(out)


@cache.command()
@FILE
@click.option("--out", type=PATH, help="[default: FILE with .npz]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(file: Path, out: Path | None, force: bool) -> None:
    """Write a cache as an .npz with the keys that import reads."""
    from cache.described import row_lengths, summary
    from cache.npz import not_exported, write_npz
    from cache.store import info as facts
    from cache.store import read_table

    out, table = out or file.with_suffix(".npz"), read_table(file)
    write_npz(table, out, force=force)
    for sentence in (*summary(table, row_lengths(table.features)), *not_exported(facts(file))):
        say(sentence)
    show(out)


cache.add_command(merge)
