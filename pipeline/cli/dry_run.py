"""--dry-run of extract and federate: what they would do. Heavy packages are imported inside."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.console import show, show_table
from pipeline.cli.options import Job
from pipeline.datasets.stated import Stated
from pipeline.places import DATA, RUNS
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from cache.table import FeatureTable

LOG = logging.getLogger(__name__)


def show_images(
    dataset: str, prompts: tuple[str, ...], as_json: bool, settings: dict[str, Any]
) -> None:
    """Prints how extract would understand the images; writes nothing and loads no CLIP.

    settings  extract's other options; root, layout, class_names and accept count here

    Raises DataError where extract would.
    """
    from pipeline.datasets.find import find_images, refuse_copies
    from pipeline.datasets.tree import image_digests
    from pipeline.datasets.understood import as_json as facts

    root: Path = settings["root"] or DATA
    stated = Stated(settings["layout"], settings["class_names"], settings["accept"])

    tell = LOG.info if as_json else show
    tree = find_images(dataset, root, tell, stated=stated, templates=prompts, draw=False)
    if dataset.lower() != "demo":
        refuse_copies(dataset, tree, image_digests(tree), stated, tell)
    if as_json:
        show(json.dumps(facts(tree)))


def show_partition(job: Job, config: RunConfig, table: "FeatureTable", file: Path) -> None:
    """Prints who would have which rows and what training would cost, and writes a page of it.

    The page goes to where the run's files would; nothing else is written. Raises as federate.
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
