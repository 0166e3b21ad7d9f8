"""The commands of cache: show, verify, import, export and merge cache files."""

import json
import logging
from pathlib import Path

import click

from pipeline.cli.command import PATH, Group, option
from pipeline.cli.console import PROMPT, show
from pipeline.cli.options import json_option, tower_options
from pipeline.encoder.towers import Towers
from pipeline.places import CACHES
from pipeline.terminal import printable

PARTS, TEXT = "Parts of the features", "Text features"
KEYS = ("features", "labels", "text_features", "domains", "class_names", "domain_names", "split")
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
        if value is not None:  # like the shard of a whole cache
            show(f"{name:<16} {_shown(value)}")
    show("made from:")
    for name, value in identity.items():
        if name not in facts:
            show(f"  {printable(name):<16} {_shown(value)}")


def _shown(value: object) -> str:
    """Format a fact: "3,000", "yes", "a, b", "width 128; resolution 48"."""
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
    show(f"{file}: every byte matches its checksum")


@cache.command("import")
@click.argument("source", type=PATH, help="File or folder of features.")
@option(
    "--labels", type=PATH, section=PARTS,
    help="File of labels, one per row: numbers, names or one-hot (.npy, .pt, .txt, .json).",
)  # fmt: skip
@option("--domains", type=PATH, section=PARTS, help="File of domains, like labels.")
@option("--split", type=PATH, section=PARTS, help="File of splits: train, val or test per row.")
@option("--class-names", type=PATH, section=PARTS, help="File of class names, one per line.")
@option("--domain-names", type=PATH, section=PARTS, help="File of domain names, one per line.")
@option("--text-features", type=PATH, section=PARTS, help="File of text features, a row per class.")
@option(
    "--key", "keys", multiple=True, metavar="KEY=NAME", section=PARTS,
    help="Name of a part in the file, as in features=train/emb; can be repeated.",
)  # fmt: skip
@option(
    "--label-column", metavar="NAME", section=PARTS,
    help="Column of clip-retrieval's metadata with the labels.",
)  # fmt: skip
@option(
    "--ignore", multiple=True, metavar="KEY", section=PARTS,
    help="Key to leave out although it resembles a known one; can be repeated.",
)  # fmt: skip
@option(
    "--labels-from", type=click.IntRange(0, 1), default=0, show_default=True, section=PARTS,
    help="Number of the first label.",
)  # fmt: skip
@option(
    "--domains-from", type=click.IntRange(0, 1), default=0, show_default=True, section=PARTS,
    help="Number of the first domain.",
)  # fmt: skip
@option(
    "--feature-scale", type=float, default=1.0, show_default=True, section=PARTS,
    help="Factor for the features: 10 makes unit rows about as long as raw ViT-B/32 features.",
)  # fmt: skip
@option(
    "--logit-scale", type=float, note="from the file", section=PARTS,
    help="Logit scale of the model; 100 for every released CLIP.",
)  # fmt: skip
@option(
    "--model", section=TEXT,
    help="CLIP that encodes missing text features; must be the one that encoded the features.",
)  # fmt: skip
@option(
    "--prompt", "prompts", multiple=True, default=(PROMPT,), show_default=True, section=TEXT,
    help="Prompt for --model, with {} in place of the class name; several are averaged.",
)  # fmt: skip
@tower_options
@option("--dataset-name", "dataset", note="name of the file", help="Name of the data set.")
@option("--out", type=PATH, note="cache/files/<name>.h5", help="Cache file to write.")
@option("--force", is_flag=True, help="Replace a cache that is already there.")
def import_(
    source: Path,
    out: Path | None,
    force: bool,
    keys: tuple[str, ...],
    label_column: str | None,
    model: str | None,
    prompts: tuple[str, ...],
    towers: Towers,
    **settings,
) -> None:
    """Convert existing features to a cache (docs/features.md).

    \b
        ./run.sh cache import features.npz
        ./run.sh cache import clip.npy --labels y.npy --class-names c.txt --model ViT-B/32
    """
    from cache.store import write_table
    from pipeline.features.read import FILES, Stated, read_features

    pairs = [pair.partition("=") for pair in keys]
    if wrong := [key for key, sign, name in pairs if key not in KEYS or not (sign and name)]:
        raise click.UsageError(f"--key {wrong[0]}: must be KEY=NAME, KEY one of {', '.join(KEYS)}")
    files = {key: file for key in FILES if (file := settings.pop(key)) is not None}
    named = {key: name for key, _, name in pairs}
    stated = Stated(files, named, label_column, model, prompts, towers)
    out = out or CACHES / f"{source.resolve().stem}.h5"
    write_table(out, read_features(source, stated, **settings), force=force)
    show(out)


@cache.command()
@FILE
@option(
    "--out", type=PATH, note="FILE with .npz",
    help="File to write; format by suffix: .npz, .pt, .h5, or .npy for a folder of them.",
)  # fmt: skip
@option("--force", is_flag=True, help="Replace a file that is already there.")
def export(file: Path, out: Path | None, force: bool) -> None:
    """Convert a cache to files of other tools, which import can read."""
    from cache.described import row_lengths, summary
    from cache.npz import not_exported
    from cache.store import info as facts
    from cache.store import read_table
    from pipeline.features.write import write_features

    table = read_table(file)
    written = write_features(table, out or file.with_suffix(".npz"), force=force)
    for sentence in (*summary(table, row_lengths(table.features)), *not_exported(facts(file))):
        LOG.info("%s", sentence)
    show(written)


@cache.command()
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
