"""A run over sites, from asking who they are to its files."""

import logging
import time
from pathlib import Path
from typing import Any

from cache.table import FeatureTable
from pipeline.flower.call import introduce
from pipeline.flower.grid import Patient
from pipeline.flower.run_config import OfRun, refuse_what_cannot_travel
from pipeline.flower.scores import cache_facts, result, rows_unseen
from pipeline.flower.strategy import FedCLIP
from pipeline.runs.federate import privacy
from pipeline.runs.folder import open_run
from pipeline.runs.results import mean_results
from pipeline.settings import RunConfig, as_json, run_id
from pipeline.settings_used import possible, unused

LOG = logging.getLogger(__name__)


def serve(
    config: RunConfig, grid: Patient, held: FeatureTable | None, terms: OfRun, runs: Path
) -> dict[str, Any]:
    """Trains by the sites that are connected and returns what `federate --json` would print.

    held  a table with the held-out domains' rows, which the server tests on; None: no such test
    runs  the folder of the run's folder, where terms.out names none

    Raises ConfigError for what cannot go to sites, and when fewer than terms.least answer.
    """
    refuse_what_cannot_travel(config)
    for note in unused(possible(config)):
        LOG.warning(note)
    started = time.perf_counter()
    fed, known, strangers = introduce(config, grid, held, terms.least, terms.timeout)
    described = {
        "settings": as_json(config),
        "cache": cache_facts(fed, held),
        "backend": "sites",
        "device": "sites",
        "first_adapter_sha256": None,
        "sites": {name: facts["content_sha256"] for name, facts in fed.facts.items()},
    }
    with open_run(Path(terms.out) if terms.out else runs / run_id(described)) as folder:
        folder.describe(described, force=terms.force)
        if folder.summary is not None:
            LOG.info(
                f"{folder.folder} is already finished; showing its results (force trains it again)"
            )
            return folder.summary
        folder.describe(described, force=True)  # what was broken off begins anew
        for note in folder.notes:
            LOG.warning(note)
        strategy = FedCLIP(fed, known, rows_unseen(fed, held), terms, folder, described)
        strategy.start(grid, strategy.arrays(), num_rounds=strategy.rounds, timeout=terms.timeout)
        model = described["cache"]["model"]
        document = {
            "cache": described["cache"],
            "config": {**described["settings"], "backend": "sites", "device": "sites"},
            "results": (results := [result(fed, strategy.reached, model, strategy.plan.folds[0])]),
            "mean": mean_results(results),
            "privacy": privacy(config),
            "left_out": {
                "sites": {str(node): why for node, why in strangers.items()},
                "clients": strategy.left_out,
            },
            "run": str(folder.folder),
            "seconds": {"total": time.perf_counter() - started},
        }
        folder.finish(document)
        for name, out_of in strategy.left_out.items():
            LOG.warning(
                f"{name} was left out {out_of['times']} times in {config.rounds} rounds, first in "
                f"round {out_of['first_round']}: {out_of['why']}"
            )
    return document
