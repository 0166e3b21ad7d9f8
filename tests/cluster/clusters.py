"""A small Ray cluster for tests, and a pool in which things happen while a sweep trains."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.cluster.connect import Size, ray, start
from pipeline.cluster.sweep import OnRay, RayPool
from pipeline.digests import unsealed


@contextlib.contextmanager
def cluster_of(*cpus: int) -> Iterator:
    """A head without processors and a node for each number, connected to."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = start(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for count in cpus:
            add(cluster, count)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add(cluster, cpus: int):
    """A further node."""
    return start(lambda: cluster.add_node(num_cpus=cpus, object_store_memory=100 << 20))


class Watched:
    """An opener: act(pool) is called at every event of a sweep; `kept` leaves its workers on."""

    def __init__(self, act: Callable[[RayPool], None] = lambda pool: None, *, kept: bool = False):
        self._inner, self._act, self._kept = OnRay(Size(cpus=1), "auto"), act, kept
        self.device = self._inner.device
        self.pool: RayPool | None = None

    @contextlib.contextmanager
    def __call__(self, *args):
        if self.pool is not None and self._kept:
            yield self
            return
        with contextlib.ExitStack() as stack:
            self.pool = stack.enter_context(self._inner(*args))
            if self._kept:
                stack.pop_all()
            yield self

    def train(self, *args):
        yield from self._seen(self.pool.train(*args))

    def finish(self, *args):
        yield from self._seen(self.pool.finish(*args))

    def _seen(self, events):
        for event in events:
            self._act(self.pool)
            yield event


def slow(worker: type, gate: str) -> type:
    """The class of a worker whose rounds take a while, and from its third on wait for a file."""

    class Slow(worker):
        def __init__(self, *args):
            from pipeline.federation import training

            super().__init__(*args)
            plain, rounds = training.advance, [0]

            def advance(*words):
                rounds[0] += 1
                while rounds[0] > 2 and not os.path.exists(gate):
                    time.sleep(0.02)
                time.sleep(0.05)
                return plain(*words)

            training.advance = advance

    return Slow


def busy(pool: RayPool) -> list:
    return [hand for hand in pool._hands if hand.batch]


def ended(out: Path) -> list[dict]:
    """The lines of trials.jsonl by number, less the seconds that each took."""
    lines = [unsealed(json.loads(line)) for line in (out / "trials.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return sorted(lines, key=lambda line: line["number"])
