"""Nodes of one machine that share a cache, without a network and on Flower's own engine."""

from pathlib import Path

import pytest

from cache.store import read_table, write_table
from pipeline.flower import programs
from pipeline.runs.federate import federate
from tests.conftest import NEEDS_PROC, ROOT
from tests.flower.processes import Programs, free_port, same_adapters
from tests.flower.sites import Network, config, lines, run, sites, whole
from tests.packages import need
from tests.runs.small_runs import small

NODES = "num-supernodes=10 client-resources-num-cpus=1 init-args-num-cpus=1"
CLIENTS = 40  # of each of three domains


class Simulation(Network):
    """The contexts that Flower's simulation makes."""

    def __init__(self, cache: Path, nodes: int) -> None:
        super().__init__(*sites([cache] * nodes))
        self.more = {"cache": str(cache), "backend": "torch"}
        for k, each in enumerate(self.contexts.values()):
            each.node_config = {"partition-id": k, "num-partitions": nodes}

    def one(self, message):
        self.run_config |= self.more
        return super().one(message)


@pytest.mark.parametrize(("nodes", "clients"), [(1, 0), (8, 0), (1, 3), (3, 3), (8, 3)])
def test_nodes_of_a_simulation_share_one_cache(tmp_path, nodes, clients):
    """Whatever their number, and with clients=0 one client a domain."""
    more = {"partition": "dirichlet", "clients": clients} if clients else {}
    table, settings = whole(tmp_path), config(rounds=2, **more)
    federate(table, settings, runs=tmp_path, out=tmp_path / "one", device="cpu", backend="torch")
    document = run(Simulation(tmp_path / "whole.h5", nodes), settings, tmp_path / "many", table)
    spare = max(nodes - 3 * settings.clients, 0)
    assert len(document["left_out"]["sites"]) == spare and not document["left_out"]["clients"]
    same_adapters(tmp_path / "many", tmp_path / "one")


class Local(Programs):
    """What starts the SuperLink that Flower leaves behind, at ports of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = {f"FLWR_LOCAL_{of}_PORT": str(free_port())
                      for of in ("SUPERLINK_HTTP_API", "CONTROL_API")}  # fmt: skip

    def env(self, name: str) -> dict[str, str]:
        return {**super().env(name), **self.ports}


@NEEDS_PROC
def test_a_simulation_of_many_clients_ends_with_the_adapter_of_one_process(tmp_path):
    """`flwr run . local-simulation`, as docs/flower.md shows it."""
    need("ray")
    cache, flower = tmp_path / "whole.h5", Local(tmp_path)
    write_table(cache, small(rows=(200, 160, 180, 30)))
    home = tmp_path / "home-run"
    home.mkdir()
    (home / "config.toml").write_text('[superlink.local-simulation]\naddress = ":local:"\n')
    asked = (
        f"held_out='d' rounds=2 method='fedavg' batch=8 lr=1e-3 moments='kept' "
        f"partition='dirichlet' clients={CLIENTS} backend='torch' "
        f"cache='{cache}' out='{tmp_path / 'many'}'"
    )
    command = [programs.program("flwr"), "run", str(ROOT), "local-simulation", "--stream",
               "--federation-config", NODES, "--run-config", asked]  # fmt: skip
    try:
        code, said = flower.run("run", *command)
    finally:
        flower.end(patience=0)  # the SuperLink is meant to stay
    assert code == 0 and f"the run is in {tmp_path / 'many'}" in said, flower.logs()
    settings = config(rounds=2, partition="dirichlet", clients=CLIENTS, moments="kept")
    federate(read_table(cache), settings, runs=tmp_path, out=tmp_path / "one", device="cpu",
             backend="torch")  # fmt: skip
    same_adapters(tmp_path / "many", tmp_path / "one")
    for ours, theirs in zip(lines(tmp_path / "many"), lines(tmp_path / "one"), strict=True):
        assert len(ours["train_loss"]) == 3 * CLIENTS
        assert ours.pop("train_loss") == pytest.approx(theirs.pop("train_loss"), rel=1e-6)
        assert ours == theirs
