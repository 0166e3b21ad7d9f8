"""The command reproduce: parse, call, print. Heavy packages are imported inside it."""

import json
from pathlib import Path

import click

from pipeline.cli.console import default_model, say, show, show_table, tell_report
from pipeline.cli.options import PATH, ReleasedSpellings, layout_options, tower_options
from pipeline.places import RUNS
from pipeline.settings import RunConfig


@click.command(cls=ReleasedSpellings)
@click.argument("dataset", metavar="pacs|vlcs|office_home|FOLDER")
@click.option("--root", "--root-dir", type=PATH, help="Where data sets lie. [default: data]")
@layout_options
@click.option("--model", "--net", help="[default: ViT-B/32; demo for demo]")
@tower_options
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Train with seeds 0, 1, ...",
)
@click.option(
    "--rounds", "--iters", type=click.IntRange(1), default=RunConfig.rounds, show_default=True
)
@click.option("--cache", type=PATH, help="Where features go. [default: cache/files/<name>.h5]")
@click.option("--out", type=PATH, help="[default: runs/sweep-<id>]")
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option("--backend", default="auto", show_default=True, help="Kernels.")
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reproduce(dataset: str, model: str | None, as_json: bool, **settings) -> None:
    """Everything from images to the paper's table: count, extract, train, compare, report.

    The released settings, every domain held out in its turn, over several seeds; zero-shot CLIP
    and, for PACS with ViT-B/32, the released figures stand beside ours.

    \b
        ./run.sh reproduce pacs
        ./run.sh reproduce my_images --model demo --seeds 2 --rounds 20
    """
    from pipeline.sweeps.reproduce import reproduce as run
    from pipeline.sweeps.reproduced import table_of

    document = run(dataset, model=default_model(dataset, model), runs=RUNS, say=say, **settings)
    if as_json:
        show(json.dumps(document, allow_nan=False))
    else:
        show_table(table_of(document))
        show("to keep an adapter, for predict:", f"  {document['again']}")
    tell_report(Path(document["sweep"]), Path(document["cache"]), as_json)
