"""The commands: parse, call one function, print. Heavy packages are imported inside commands."""

import dataclasses
import json
import sys
import traceback
from pathlib import Path

import click

from pipeline.cli.cache import cache
from pipeline.cli.console import (
    PROMPT,
    default_model,
    find_cache,
    run_extract,
    say,
    show,
    show_table,
    tell_report,
)
from pipeline.cli.dry_run import show_images
from pipeline.cli.flower import flower
from pipeline.cli.merge import named_shard
from pipeline.cli.options import (
    PATH,
    ReleasedSpellings,
    cache_options,
    choose_held_out,
    config_options,
    fold_options,
    given_settings,
    layout_options,
    tower_options,
    where_options,
)
from pipeline.cli.predict import predict
from pipeline.cli.report import report
from pipeline.cli.reproduce import reproduce
from pipeline.cli.sweep import sweep
from pipeline.cli.table import table
from pipeline.datasets.counts import DOWNLOADS
from pipeline.encoder.towers import Towers
from pipeline.errors import ConfigError
from pipeline.missing import refuse_missing_package
from pipeline.places import DATA, RUNS
from pipeline.settings import RunConfig
from pipeline.shortage import prepare_for_limit, shortage
from pipeline.terminal import printable

DATASETS = ("demo", "pacs", "vlcs", "office_home", "domain_net", "terra_incognita")


class Commands(click.Group):
    """Prints what a user can cause as one line; a bug keeps its traceback.

    Exit codes: 0 done; 1 a setting or run that cannot be; 2 usage; 3 an unlike cache; 4 a damaged,
    incomplete or unknown cache or name in it; 5 no such device or backend here; 6 images or data
    set; 7 CLIP weights; 130 and 143 stopped by SIGINT and SIGTERM after writing what was done.
    """

    def main(self, *args, standalone_mode: bool = True, **settings):
        """As click's, but a SIGINT at any moment is 130; its own code for one is 1."""
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
        """As click's, after a look at limits that its libraries would hang or crash at."""
        found = super().resolve_command(ctx, args)
        if found[0] and not {"--help", "-h"} & set(args):
            prepare_for_limit(found[0])
        return found

    def invoke(self, ctx: click.Context):
        """Runs the command; an error with an exit_code ends as one line and that code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # nothing that is worth a word was under way
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
    """What the system refused, and for which file, or in which function where none is named."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = " -> ".join(names) or f"{last.name} ({last.filename}:{last.lineno})"
    return f"{where}: {error.strerror or error}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """FedCLIP from a feature cache: extract once, federate many times."""


@cli.command(cls=ReleasedSpellings)
@click.option(
    "--dataset",
    default="demo",
    show_default=True,
    metavar="NAME|FOLDER",
    help=f"One of {', '.join(DATASETS)}, or a folder domain/class/image or class/image, either"
    " with train, val and test folders.",
)
@click.option("--root", "--root-dir", type=PATH, help="Where data sets lie. [default: data]")
@layout_options
@click.option(
    "--dry-run", is_flag=True, help="Show what is understood of the images and do nothing else."
)
@click.option(
    "--model", "--net", help="An OpenAI backbone such as ViT-B/32, a file of weights, or demo."
)
@tower_options
@click.option("--out", type=PATH, help="Cache file to write.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    default=(PROMPT,),
    show_default=True,
    help="{} stands for the class; several are averaged.",
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option("--batch", type=click.IntRange(1), help="Images encoded at a time.")
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.")
@click.option("--store", default="fp16", type=click.Choice(["fp16", "fp32"]), show_default=True)
@click.option(
    "--on-bad-image", default="fail", type=click.Choice(["fail", "skip"]), show_default=True
)
@click.option(
    "--max-megapixels",
    type=float,
    default=100,
    show_default=True,
    help="An image with more pixels is unreadable.",
)
@click.option(
    "--max-image-seconds",
    type=float,
    default=60,
    show_default=True,
    help="An image that takes longer to decode is unreadable.",
)
@click.option(
    "--max-image-mib",
    type=float,
    default=1024,
    show_default=True,
    help="An image that needs more memory to decode is unreadable: pixels times channels times"
    " bytes, as its codec holds them.",
)
@click.option("--force", is_flag=True, help="Encode again what is there.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Encode the I-th of N parts only, on this machine or GPU; `cache merge` joins them."
    " [default: what torchrun or srun says of this process, else the whole]",
)
@click.option(
    "--check",
    type=click.IntRange(1),
    metavar="N",
    help="Write nothing: encode N random rows of the cache again and compare.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def extract(
    dataset: str,
    model: str | None,
    prompts: tuple[str, ...],
    shard: str | None,
    check: int | None,
    dry_run: bool,
    as_json: bool,
    **settings,
) -> None:
    """Encode images and prompts once with frozen CLIP and cache the features (stage one).

    \b
        ./run.sh extract --dataset pacs --model ViT-B/32
        ./run.sh extract --dataset my_images --prompt "a photo of a {}"
        ./run.sh extract --dataset my_images --dry-run
        ./run.sh extract --dataset pacs --model ViT-B/32 --check 100
        ./run.sh extract --dataset pacs --model ViT-B/32 --shard 2/8
    """
    if dry_run:
        if check is not None:
            raise ConfigError(
                "--dry-run and --check are two different things; leave one of them out"
            )
        show_images(dataset, prompts, as_json, settings)
        return
    if check is not None:
        if shard:
            raise ConfigError("--check looks at a whole cache; leave out --shard")
        from pipeline.cli.check import run_check

        run_check(dataset, default_model(dataset, model), prompts, check, as_json, settings)
        return
    report = run_extract(dataset, model, prompts, **named_shard(shard), **settings)
    if as_json:
        show(json.dumps(dataclasses.asdict(report), default=str))
        return
    show(
        f"{report.path}: {report.rows:,} rows, {report.encoded:,} encoded now at "
        f"{report.images_per_second:,.0f} images/s, {report.unreadable} unreadable, "
        f"{report.seconds['total']:.1f} s in all"
    )


@cli.command(cls=ReleasedSpellings)
@cache_options
@fold_options
@config_options
@click.option("--init-adapter", type=PATH, help="safetensors to start from.")
@click.option("--out", type=PATH, help="Run folder. [default: runs/<run_id>]")
@where_options
@click.option("--force", is_flag=True, help="Train again in a folder that holds a run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def federate(
    cache: Path | None,
    dataset: str | None,
    model: str | None,
    root: Path | None,
    towers: Towers,
    held_out: tuple[str, ...],
    test_envs: tuple[int, ...],
    preset: str,
    init_adapter: Path | None,
    out: Path | None,
    device: str,
    backend: str,
    force: bool,
    as_json: bool,
    **settings,
) -> None:
    """Train adapters by federated rounds on cached features (stage two).

    With nothing named: the built-in data, every domain held out in its turn.

    \b
        ./run.sh federate
        ./run.sh federate features.h5 --held-out sketch
        ./run.sh federate --dataset pacs --test_envs 0 --iters 200 --wk_iters 1 --lr 5e-05
    """
    settings = given_settings(preset, settings)
    RunConfig(**settings)  # refuses settings that cannot be before anything slow happens
    _, file = find_cache(cache, dataset, model, root, device, towers)
    from cache.store import read_table
    from pipeline.federation.plan import kind_of
    from pipeline.runs.federate import federate as run
    from pipeline.runs.folder import read_first_adapter
    from pipeline.runs.results import table as as_table

    table = read_table(file)
    config = RunConfig(held_out=choose_held_out(table, held_out, test_envs), **settings)
    start = init_adapter and read_first_adapter(init_adapter, kind_of(table, config))
    document = run(
        table,
        config,
        runs=RUNS,
        out=out,
        device=device,
        backend=backend,
        first_adapter=start,
        file=file,
        force=force,
        say=say,
    )
    show_table(json.dumps(document, allow_nan=False) if as_json else as_table(document))
    tell_report(Path(document["run"]), file, as_json)


@cli.command()
@click.argument("dataset", type=click.Choice(DOWNLOADS))
@click.option("--root", type=PATH, default=DATA, show_default=True)
@click.option("--url", help="Another address of the archive.")
def download(dataset: str, root: Path, url: str | None) -> None:
    """Fetch a public data set, unpack it and check its counts."""
    from pipeline.datasets.fetch import download_dataset

    show(download_dataset(dataset, root, url=url, say=say))


for command in (sweep, cache, flower, predict, report, reproduce, table):
    cli.add_command(command)
