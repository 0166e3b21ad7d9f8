"""The commands: parse, call one function, print. Heavy packages are imported inside commands."""

import dataclasses
import json
import sys
import traceback
from pathlib import Path

import click

from pipeline.cli.cache import cache
from pipeline.cli.command import PATH, Group, option, together
from pipeline.cli.console import (
    PROMPT,
    default_model,
    find_cache,
    grow_results,
    load_table,
    run_extract,
    show,
    show_report,
    show_table,
)
from pipeline.cli.dry_run import show_images, show_partition
from pipeline.cli.flower import flower
from pipeline.cli.merge import named_shard
from pipeline.cli.options import (
    DATA,
    HARDWARE,
    Job,
    connection,
    device_option,
    job_options,
    json_option,
    layout_options,
    limit_options,
    model_option,
    ray_options,
    root_option,
    tower_options,
    workers_option,
)
from pipeline.cli.predict import predict
from pipeline.cli.report import report
from pipeline.cli.reproduce import reproduce
from pipeline.cli.runs import runs
from pipeline.cli.sweep import sweep
from pipeline.cli.table import table
from pipeline.datasets.counts import DOWNLOADS
from pipeline.errors import ConfigError
from pipeline.missing import refuse_missing_package
from pipeline.places import DATA as DATA_FOLDER
from pipeline.places import RUNS
from pipeline.settings import RunConfig
from pipeline.shortage import prepare_for_limit, shortage
from pipeline.terminal import printable

DATASETS = ("demo", "pacs", "vlcs", "office_home", "domain_net", "terra_incognita")


class Commands(Group):
    """Prints what a user can cause as one line; a bug keeps its traceback.

    Exit codes: 0 done; 1 invalid setting or run; 2 usage; 3 mismatched cache; 4 damaged, incomplete
    or unknown cache or name in it; 5 device or backend not available; 6 images or data set; 7 CLIP
    weights; 130 and 143 stopped by SIGINT and SIGTERM after saving finished work.
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
        """As click's, after a check of limits at which its libraries would hang or crash."""
        found = super().resolve_command(ctx, args)
        if found[0] and not {"--help", "-h"} & set(args):
            prepare_for_limit(found[0])
        return found

    def invoke(self, ctx: click.Context):
        """Runs the command; an error with an exit_code ends as one line and that code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # nothing that needs a message was under way
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


@cli.command()
@option(
    "--dataset", default="demo", show_default=True, metavar="NAME|FOLDER", section=DATA,
    help=f"One of {', '.join(DATASETS)}; a folder domain/class/image or class/image, also with "
    "train, val and test folders; or a zip, list, CSV, parquet or tar file (docs/folders.md).",
)  # fmt: skip
@root_option
@layout_options
@model_option
@tower_options
@option(
    "--prompt", "prompts", multiple=True, default=(PROMPT,), show_default=True, section=DATA,
    help="Prompt, with {} in the place of the class name; several are averaged.",
)  # fmt: skip
@option(
    "--on-bad-image", default="fail", type=click.Choice(["fail", "skip"]), show_default=True,
    section=DATA, help="Whether an unreadable image ends the extraction or is skipped.",
)  # fmt: skip
@limit_options
@device_option
@option(
    "--batch", type=click.IntRange(1), section=HARDWARE, note="depends on the device",
    help="Number of images encoded at a time.",
)  # fmt: skip
@workers_option
@option(
    "--shard", metavar="I/N", section=HARDWARE,
    note="as set by torchrun or srun, else all images",
    help="Encode only part I of N on this machine or GPU; join the parts with `cache merge`.",
)  # fmt: skip
@together(*ray_options)
@option("--out", type=PATH, note="cache/files/<name>.h5", help="Cache file to write.")
@option(
    "--store", default="fp16", type=click.Choice(["fp16", "fp32"]), show_default=True,
    help="Precision of the stored features.",
)  # fmt: skip
@option("--force", is_flag=True, help="Encode everything again, even if it is in the cache.")
@option("--dry-run", is_flag=True, help="Show how the images are understood, and stop.")
@option(
    "--check", type=click.IntRange(1), metavar="N",
    help="Encode N random rows again and compare them with the cache; write nothing.",
)  # fmt: skip
@json_option
def extract(
    dataset: str,
    model: str | None,
    prompts: tuple[str, ...],
    shard: str | None,
    check: int | None,
    dry_run: bool,
    as_json: bool,
    ray: str | None,
    ray_worker: str | None,
    **settings,
) -> None:
    """Encode images and prompts once with frozen CLIP and cache the features (stage one).

    \b
        ./run.sh extract --dataset pacs --model ViT-B/32
        ./run.sh extract --dataset my_images --prompt "a photo of a {}"
        ./run.sh extract --dataset my_images --dry-run
        ./run.sh extract --dataset pacs --model ViT-B/32 --check 100
        ./run.sh extract --dataset pacs --model ViT-B/32 --shard 2/8
        ./run.sh extract --dataset pacs --model ViT-B/32 --ray auto
    """
    if dry_run:
        if check is not None:
            raise ConfigError("--dry-run and --check cannot be combined; pass only one of them")
        show_images(dataset, prompts, as_json, settings)
        return
    if check is not None:
        if shard:
            raise ConfigError("--check compares a whole cache; leave out --shard")
        from pipeline.cli.check import run_check

        run_check(dataset, default_model(dataset, model), prompts, check, as_json, settings)
        return
    if ray and shard:
        raise ConfigError("--ray makes shards itself; leave out --shard")
    with connection(ray, ray_worker) as size:
        if size is None:
            report = run_extract(dataset, model, prompts, **named_shard(shard), **settings)
        else:
            from pipeline.cluster.extract import extract_on_ray

            named = {"model": default_model(dataset, model), "templates": prompts}
            report = extract_on_ray(dataset, size, **named, **settings)
    if as_json:
        show(json.dumps(dataclasses.asdict(report), default=str))
        return
    show(
        f"{report.path}: {report.rows:,} rows, {report.encoded:,} encoded now at "
        f"{report.images_per_second:,.0f} images/s, {report.unreadable} unreadable, "
        f"{report.seconds['total']:.1f} s in all"
    )


@cli.command()
@job_options(out="runs/<run_id>")
@option(
    "--init-adapter", type=PATH, section="Adapter",
    help="Adapter file (safetensors) to start training from.",
)  # fmt: skip
@option(
    "--log-every", type=click.IntRange(1), metavar="N",
    help="Log accuracies and the time left every N rounds.",
)  # fmt: skip
@option(
    "--log-to", multiple=True, type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    help="Also send each round's figures to this program; can be repeated.",
)  # fmt: skip
@option(
    "--dry-run", is_flag=True,
    help="Show who would have which rows, and the expected time and bytes, and stop.",
)  # fmt: skip
def federate(
    job: Job, given: dict, init_adapter: Path | None, log_every: int | None,
    log_to: tuple[str, ...], dry_run: bool,
) -> None:  # fmt: skip
    """Train adapters by federated rounds on cached features (stage two).

    Without options: the built-in data, with each domain held out in turn.

    \b
        ./run.sh federate
        ./run.sh federate features.h5 --held-out sketch
        ./run.sh federate features.h5 --partition dirichlet --clients 8 --dry-run
        ./run.sh federate --dataset pacs --test_envs 0 --iters 200 --wk_iters 1 --lr 5e-05
    """
    RunConfig(**given)  # refuses invalid settings before anything slow happens
    _, file = find_cache(job)
    from pipeline.federation.plan import kind_of
    from pipeline.runs.federate import federate as run
    from pipeline.runs.folder import read_first_adapter
    from pipeline.runs.results import table as as_table

    table = load_table(file)
    config = RunConfig(held_out=job.folds(table), **given)
    if dry_run:
        show_partition(job, config, table, file)
        return
    start = init_adapter and read_first_adapter(init_adapter, kind_of(table, config))
    answers: dict = {}
    document = run(
        table,
        config,
        runs=RUNS,
        out=job.out,
        device=job.device,
        backend=job.backend,
        first_adapter=start,
        file=file,
        force=job.force,
        answers=answers,
        name=job.name,
        tags=job.tags,
        log_every=log_every or 0,
        log_to=log_to,
    )
    show_table(json.dumps(document, allow_nan=False) if job.as_json else as_table(document))
    grow_results(job.csv, [Path(document["run"])], job.as_json)
    show_report(Path(document["run"]), file, job.as_json, answers)


@cli.command()
@click.argument("dataset", type=click.Choice(DOWNLOADS), help="The data set.")
@option("--root", type=PATH, default=DATA_FOLDER, note="data", help="Folder for data sets.")
@option("--url", help="Address to download the archive from instead of the known one.")
@option("--hub", is_flag=True, help="Download the Hugging Face hub's parquet files instead.")
def download(dataset: str, root: Path, url: str | None, hub: bool) -> None:
    """Download a public data set, unpack it and check its image counts."""
    from pipeline.datasets.fetch import download_dataset, download_from_hub

    if url and hub:
        raise click.UsageError("--url and --hub exclude each other")
    show(download_from_hub(dataset, root) if hub else download_dataset(dataset, root, url=url))


for command in (sweep, cache, flower, predict, report, reproduce, runs, table):
    cli.add_command(command)
