"""extract --dry-run: how the images are understood. Heavy packages are imported inside it."""

import json
import logging
from pathlib import Path
from typing import Any

from pipeline.cli.console import show
from pipeline.datasets.stated import Stated
from pipeline.places import DATA

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
