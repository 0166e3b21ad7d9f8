"""The command federate: parse, call, print. Heavy packages are imported inside functions."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import find_cache, grow_results, load_table, show, show_report, show_table
from pipeline.cli.options import Job, job_options
from pipeline.imports import uncollected
from pipeline.places import RUNS
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from cache.table import FeatureTable

LOG = logging.getLogger(__name__)


@click.command(cls=Command)
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
    help="Show each client's rows and the expected time and bytes, and stop.",
)  # fmt: skip
def federate(
    job: Job, given: dict, init_adapter: Path | None, log_every: int | None,
    log_to: tuple[str, ...], dry_run: bool,
) -> None:  # fmt: skip
    """Train adapters in federated rounds on cached features (stage two).

    Without options: the built-in data, with each domain held out in turn.

    \b
        ./run.sh federate
        ./run.sh federate features.h5 --held-out sketch
        ./run.sh federate features.h5 --partition dirichlet --clients 8 --dry-run
        ./run.sh federate --dataset pacs --test_envs 0 --iters 200 --wk_iters 1 --lr 5e-05
    """
    RunConfig(**given)  # refuses invalid settings before anything slow happens
    _, file = find_cache(job)
    with uncollected():
        from pipeline.federation.plan import kind_of
        from pipeline.runs.federate import federate as run
        from pipeline.runs.folder import read_first_adapter
        from pipeline.runs.results import table as as_table

    table = load_table(file)
    config = RunConfig(held_out=job.folds(table), **given)
    if dry_run:
        _show_partition(job, config, table, file)
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


def _show_partition(job: Job, config: RunConfig, table: "FeatureTable", file: Path) -> None:
    """Prints and writes a page of each client's rows and the expected cost of training.

    The page goes to the run's folder; nothing else is written. Raises as federate does.
    """
    from kernels.backends import pick_device
    from pipeline.federation.plan import build_plan
    from pipeline.federation.training import pick_plan_backend
    from pipeline.files import make_folder
    from pipeline.json_files import replace_file
    from pipeline.reports.data import dataset_of
    from pipeline.reports.partition import NAME, partition_html
    from pipeline.runs.federate import describe, doubts
    from pipeline.runs.partition import look, record_of, text_of
    from pipeline.settings import run_id
    from pipeline.sweeps.best import federate_command

    device = pick_device(job.device)
    plan = build_plan(table, config)
    backend = pick_plan_backend(plan, job.backend, device)
    notes = list(doubts(table, plan, None))
    for note in notes:
        LOG.warning("%s", note)
    dataset = dataset_of(table.identity, str(file)) or "features"
    found = look(table, plan, backend, device, notes, dataset=dataset)
    folder = job.out or RUNS / run_id(describe(table, config, device, backend, None))
    make_folder(folder)
    command = federate_command(config, {}, config.seed, [str(file)])
    page = replace_file(folder / NAME, partition_html(found, command))
    if job.as_json:
        show(json.dumps({**record_of(found), "page": str(page)}))
        return
    show_table(text_of(found))
    show(page)
