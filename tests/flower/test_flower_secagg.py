"""Flower's SecAgg+ with the sums of closed-form heads: the server learns their total alone.

Flower 1.41's SecAgg+ is a workflow of its older API (strategies of flwr.server, LegacyContext) and
a mod at the clients. Inside a ServerApp both run as they are; strategies of flwr.serverapp, and so
pipeline/flower/strategy.py, cannot take the workflow. This is the whole of an app that uses it.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from cache.store import read_table
from pipeline.federation.methods.closed_form import gda, packed, sums_of, unpacked
from tests.flower.sites import Network, cut, whole

LEVELS = 2**22  # of Flower's default quantization
CLASSES, WIDTH, ROWS = 4, 12, 100  # ROWS: no client has more of them; all must agree on it

client_app = ClientApp(mods=[secaggplus_mod])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's packed sums, with weight 1: the mod masks them before they leave."""
    table = read_table(context.node_config["cache"])
    labels = torch.from_numpy(table.labels)
    numbers = packed(sums_of(torch.from_numpy(np.array(table.features)), labels, CLASSES)).numpy()
    done = FitRes(
        Status(Code.OK, ""), ndarrays_to_parameters([numbers]), num_examples=1, metrics={}
    )
    return Message(compat.fitres_to_recorddict(done, keep_input=True), reply_to=message)


def total_of(grid, context: Context, clients: int) -> np.ndarray:
    """The ServerApp's main: the sum over clients, of which no single one was seen."""
    first = ndarrays_to_parameters([np.zeros(1)])
    strategy = FedAvg(
        fraction_evaluate=0.0, min_fit_clients=clients, min_available_clients=clients,
        initial_parameters=first,
    )  # fmt: skip
    legacy = LegacyContext(context, ServerConfig(num_rounds=1), strategy)
    secure = SecAggPlusWorkflow(
        num_shares=1.0, reconstruction_threshold=0.7, max_weight=1.0, clipping_range=float(ROWS),
        quantization_range=LEVELS,
    )  # fmt: skip
    DefaultWorkflow(fit_workflow=secure)(grid, legacy)
    mean = compat.arrayrecord_to_parameters(legacy.state.array_records["parameters"], False)
    return clients * parameters_to_ndarrays(mean)[0]


class Seeing(Network):
    """Sites with that app, and all that the server was sent."""

    run = SimpleNamespace(run_id=1)

    def one(self, message: Message) -> Message:
        message.content = copy.deepcopy(message.content)  # sites share no memory
        return client_app(message, self.contexts[message.metadata.dst_node_id])


@pytest.fixture
def network(tmp_path):
    table = whole(tmp_path)
    made = Seeing()
    for node, file in enumerate(cut(table, tmp_path, ("a",), ("b",), ("c",), ("d",)), 100):
        made.contexts[node] = Context(1, node, {"cache": str(file)}, RecordDict(), {})
    return made, table


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_secure_aggregation_carries_sums_up_to_its_quantization(network):
    grid, table = network
    # A rounding is under 2 ROWS / LEVELS = 4.8e-5 for each client; float32 nowhere in between.
    got = total_of(grid, Context(1, 0, {}, RecordDict(), {}), 4)
    labels = torch.from_numpy(table.labels)
    exact = packed(sums_of(torch.from_numpy(np.array(table.features)), labels, CLASSES))
    assert np.abs(got - exact.numpy()).max() <= 4 * 2 * ROWS / LEVELS
    sums, ours = unpacked(exact, CLASSES, WIDTH), unpacked(torch.from_numpy(got), CLASSES, WIDTH)
    assert torch.equal(ours.count.round(), sums.count)
    heads = [gda(each)(1.0) for each in (sums, ours)]
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=1e-2, atol=1e-2)
    for content in grid.came:  # neither a sum nor a part of one
        for record in content.array_records.values():
            assert not record, "an array left a site unmasked"


def test_strategies_of_the_message_api_do_not_take_the_workflow(network):
    workflow = SecAggPlusWorkflow(1.0, 0.7)
    with pytest.raises(TypeError, match="Expect a LegacyContext"):
        workflow(network[0], Context(1, 0, {}, RecordDict(), {}))
