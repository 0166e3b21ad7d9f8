"""FedCLIP as a Flower app: the ClientApp and the ServerApp that pyproject.toml names.

Flower starts a new Python process for every message, so torch is imported only where a message is
answered, and what a client keeps from round to round lies in the context's state.
"""

import logging
import os
import time
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr reads it when it is imported

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from pipeline.terminal import log_to, printable_lines  # noqa: E402

LOG = logging.getLogger(__name__)
KEPT = "kept."
PAUSE = 0.5  # seconds between two looks for sites

client_app = ClientApp()  # two plain assignments: `flwr run` looks for these names unimported
server_app = ServerApp()


@client_app.query()
@client_app.train()
@client_app.evaluate()
def respond(message: Message, context: Context) -> Message:
    """One message of a server, answered from the cache that the node's config names.

    A query asks who the site is, train and evaluate how an adapter does there; train trains.
    """
    from pipeline.federation.payload import payload_of
    from pipeline.flower.answer import write_answer
    from pipeline.flower.grid import REFUSED
    from pipeline.flower.records import read_ask
    from pipeline.flower.run_config import config_of
    from pipeline.flower.site import answer, reason, site_of

    try:
        site = site_of(context.node_config, context.run_config)
        config = config_of(context.run_config)
        ask = read_ask(message.content, payload_of(config))
        kept = {
            name.removeprefix(KEPT): record.to_torch_state_dict()
            for name, record in context.state.array_records.items()
            if name.startswith(KEPT)
        }
        told, kept = answer(site, config, ask, kept)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # a bug: its traceback is for this site's log
            raise
        with log_to("stdout"):
            LOG.warning(f"refused: {error}")
        cache = Path(str(context.node_config.get("cache", "")))
        why = ConfigRecord({"why": reason(cache, error)})
        return Message(RecordDict({REFUSED: why}), reply_to=message)
    for name, parts in kept.items():
        context.state[f"{KEPT}{name}"] = ArrayRecord(parts)
    return Message(write_answer(told), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """A run with the settings of its run config."""
    from cache.store import read_table
    from pipeline.flower.grid import Patient
    from pipeline.flower.run_config import DEFAULTS, config_of, terms_of
    from pipeline.flower.server import serve
    from pipeline.runs.results import table

    with log_to("stdout"):  # the log that `flwr run --stream` shows
        config, terms = config_of(context.run_config), terms_of(context.run_config)
        LOG.info(
            f"method {config.method}; sites are not trusted, so it is {DEFAULTS['method']} unless "
            "another is given"
        )
        held = read_table(Path(terms.cache)) if terms.cache else None
        _wait_for(grid, terms.sites, terms.wait)
        document = serve(config, Patient(grid), held, terms, Path.cwd() / "runs")
    show(table(document))
    show(f"the run is in {document['run']}")


def show(message: str) -> None:
    """To the log that `flwr run --stream` shows."""
    print(printable_lines(message), flush=True)


def _wait_for(grid: Grid, sites: int, seconds: float) -> None:
    """Until `sites` nodes are connected and no other has come since the last look."""
    from pipeline.errors import ConfigError

    end, before = time.monotonic() + seconds, -1
    while (there := len(list(grid.get_node_ids()))) < sites or there != before:
        if there != before and there < sites:
            LOG.info(f"{there} of {sites} sites are connected")
        if time.monotonic() > end and there < sites:
            raise ConfigError(f"{there} of {sites} sites connected in {seconds:g} s (wait)")
        before = there
        time.sleep(PAUSE)
