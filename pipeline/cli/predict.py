"""The command predict: parse, call, print. Heavy packages are imported inside it."""

import dataclasses
import json
from pathlib import Path

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import show_table
from pipeline.cli.options import device_option, json_option, limit_options
from pipeline.imports import uncollected

NAMED = 3  # bad images named in the error; each has its own line above it
ADAPTER = "Adapter"


@click.command(cls=Command)
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", help="Image files, folders or globs."
)
@option(
    "--run", required=True, type=PATH, section=ADAPTER, help="Folder of a run, or an adapter file."
)
@option(
    "--held-out", metavar="DOMAIN|none", section=ADAPTER,
    help="Held-out domain of the adapter to use, if the run has several.",
)  # fmt: skip
@option(
    "--client", section=ADAPTER,
    help="Client whose adapter to use, if each client has its own (local, ditto, fedper).",
)  # fmt: skip
@option(
    "--classes", metavar="A,B,...", note="those of the training", help="Classes to choose from."
)
@option(
    "--top", type=click.IntRange(1), default=1, show_default=True,
    help="Number of classes to show for each image.",
)  # fmt: skip
@option(
    "--model", "--net", metavar="FILE", section=ADAPTER, note="the run's",
    help="File of weights of the run's CLIP model.",
)  # fmt: skip
@limit_options
@device_option
@json_option
def predict(
    images: tuple[str, ...],
    run: Path,
    held_out: str | None,
    client: str | None,
    classes: str | None,
    top: int,
    model: str | None,
    device: str,
    max_megapixels: float,
    max_image_seconds: float,
    max_image_mib: float,
    as_json: bool,
) -> None:
    """Classify images with a trained adapter, shown next to zero-shot CLIP's answers.

    IMAGE is a file, a folder (all images below it) or a glob. If an image cannot be read, the
    others are still classified, and the exit code is 6.

    \b
        ./run.sh predict photo.jpg --run runs/0a1b2c3d4e5f
        ./run.sh predict holiday/ "more/*.png" --run runs/0a1b2c3d4e5f --held-out sketch --top 5
        ./run.sh predict photo.jpg --run runs/0a1b2c3d4e5f --classes cat,dog,otter
    """
    with uncollected():
        from kernels.backends import pick_device
        from pipeline.encoder.pixels import image_limits
        from pipeline.errors import DataError
        from pipeline.progress import progress_bar
        from pipeline.runs.adapters import load_its_model, read_trained
        from pipeline.runs.predict import choose_classes, find_pictures
        from pipeline.runs.predict import predict as answers_for

    limits = image_limits(max_megapixels, max_image_seconds, max_image_mib)
    where = pick_device(device)
    trained = read_trained(run, held_out, client)
    names = choose_classes(trained, classes)
    files, lost = find_pictures(images)
    answers = []
    if files:
        clip = load_its_model(trained, model, where)
        answers = list(
            progress_bar(
                iterable=answers_for(files, trained, clip, names, top=top, limits=limits),
                total=len(files),
                unit=" images",
            )
        )
    answers += lost
    document = {
        "run": str(run),
        "held_out": trained.held_out,
        "model": trained.model,
        "templates": trained.templates,
        "classes": names,
        "answers": [_as_json(one) for one in answers],
    }
    show_table(json.dumps(document, allow_nan=False) if as_json else _table(answers))
    bad = [f"{one.image}: {one.error}" for one in answers if one.error]
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise DataError(
            f"{len(bad)} of {len(answers)} images could not be classified: "
            f"{'; '.join(bad[:NAMED])}{more}"
        )


def _as_json(one) -> dict:
    def guesses(found) -> list[dict]:
        return [{"class": name, "confidence": sure} for name, sure in found]

    return {
        **dataclasses.asdict(one),
        "image": str(one.image),
        "adapter": guesses(one.adapter),
        "zero_shot": guesses(one.zero_shot),
    }


def _table(answers) -> str:
    """A line for each guess: image, class and confidence by the adapter, and by zero-shot CLIP."""
    from pipeline.runs.results import aligned, percent

    rows = [["image", "class", "%", "zero-shot", "%"]]
    for one in answers:
        image = str(one.image)
        if one.error:
            rows.append([image, "-", "-", "-", "-"])
        for mine, plain in zip(one.adapter, one.zero_shot, strict=True):
            rows.append([image, mine[0], percent(mine[1]), plain[0], percent(plain[1])])
            image = ""
    return aligned(rows)
