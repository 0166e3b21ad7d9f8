"""The commands of cache: look into, check, import and export cache files."""

import json
from pathlib import Path

import click

from pipeline.cli_merge import merge
from pipeline.cli_shared import HOME, show
from pipeline.options import PATH
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
def import_(npz: Path, out: Path | None, force: bool) -> None:
    """Make a cache of an .npz: features, labels, text_features (and more, docs/cache-format.md)."""
    from cache.npz import read_npz
    from cache.store import write_table

    out = out or HOME / "cache" / "files" / f"{npz.stem}.h5"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(out, read_npz(npz), force=force)
    show(out)


@cache.command()
@FILE
@click.option("--out", type=PATH, help="[default: FILE with .npz]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(file: Path, out: Path | None, force: bool) -> None:
    """Write a cache as an .npz with the keys that import reads."""
    from cache.npz import write_npz
    from cache.store import read_table

    out = out or file.with_suffix(".npz")
    write_npz(read_table(file), out, force=force)
    show(out)


cache.add_command(merge)
