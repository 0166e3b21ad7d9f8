"""The command reproduce: parse, call, print. Heavy packages are imported inside it."""

import json
from pathlib import Path

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import default_model, show, show_report, show_table
from pipeline.cli.options import (
    backend_option,
    device_option,
    json_option,
    layout_options,
    model_option,
    root_option,
    tower_options,
    workers_option,
)
from pipeline.places import RUNS
from pipeline.settings import RunConfig

TRAINING = "Training"


@click.command(cls=Command)
@click.argument(
    "dataset", metavar="pacs|vlcs|office_home|FOLDER",
    help="A known data set, or a folder of images.",
)  # fmt: skip
@root_option
@layout_options
@model_option
@tower_options
@option(
    "--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, section=TRAINING,
    metavar="N", help="Train with seeds 0 to N-1.",
)  # fmt: skip
@option(
    "--rounds", "--iters", type=click.IntRange(1), default=RunConfig.rounds, show_default=True,
    section=TRAINING, help="Number of server rounds.",
)  # fmt: skip
@option("--cache", type=PATH, note="cache/files/<name>.h5", help="Cache file to write.")
@option("--out", type=PATH, note="runs/sweep-<id>", help="Folder to write the sweep to.")
@device_option
@backend_option
@workers_option
@json_option
def reproduce(dataset: str, model: str | None, as_json: bool, **settings) -> None:
    """Go from images to the paper's table: count, extract, train, compare and report.

    Uses the released settings, with each domain held out in turn, over several seeds. The results
    are shown next to zero-shot CLIP's and, for PACS with ViT-B/32, next to the published figures.

    \b
        ./run.sh reproduce pacs
        ./run.sh reproduce my_images --model demo --seeds 2 --rounds 20
    """
    from pipeline.sweeps.reproduce import reproduce as run
    from pipeline.sweeps.reproduced import table_of

    document = run(dataset, model=default_model(dataset, model), runs=RUNS, **settings)
    if as_json:
        show(json.dumps(document, allow_nan=False))
    else:
        show_table(table_of(document))
        show("to keep an adapter, for predict:", f"  {document['again']}")
    show_report(Path(document["sweep"]), Path(document["cache"]), as_json)
