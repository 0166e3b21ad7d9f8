"""Connects to a Ray cluster; sizes of workers, and the nodes that can hold them."""

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from pipeline.errors import ConfigError
from pipeline.places import HOME

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own warning advises it
os.environ.setdefault("RAY_worker_niceness", "0")  # not 15, on a cluster that is started here
try:
    import ray
except ImportError as error:
    raise ConfigError("--ray needs Ray: pip install -r requirements-ray.txt") from error

CODE = ("pipeline", "cache", "kernels")
STARTS = 4
T = TypeVar("T")


class Size(NamedTuple):
    """The resources of one worker; cpus None: all of its node's, or one with a GPU."""

    cpus: float | None = None
    gpus: float | None = None

    def __str__(self) -> str:
        return ",".join(f"{n}={v:g}" for n, v in self._asdict().items() if v is not None) or "auto"


class Node(NamedTuple):
    """A machine of the cluster: its number of workers, and the resources of each."""

    id: str
    name: str
    workers: int
    cpus: float
    gpus: float


def parse_size(words: str | None) -> Size:
    """cpus=2,gpus=1 -> Size(2, 1); raises ConfigError for other words."""
    found: dict[str, float] = {}
    for word in (words or "").split(",") if words else ():
        match = re.fullmatch(r"\s*(cpus|gpus)\s*=\s*([0-9]*\.?[0-9]+)\s*", word)
        if not match or match[1] in found or not 0 <= float(match[2]) <= 10**6:
            raise ConfigError(f"--ray-worker {words!r}: write cpus=N, gpus=N or cpus=N,gpus=N")
        found[match[1]] = float(match[2])
    if found and not any(found.values()):
        raise ConfigError(
            f"--ray-worker {words!r}: a worker needs a CPU or a GPU; pass numbers above 0"
        )
    return Size(**found)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster: "local" starts one on this machine, "auto" finds one.

    An existing connection of this process is reused and left open. Other nodes get this project's
    code from here. Raises ConfigError if there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    if "://" in address:
        raise ConfigError(
            f"--ray {address}: Ray Client is not supported; run the command on a machine of the "
            "cluster with --ray auto, or pass HOST:PORT as `ray start --head` printed it"
        )
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        start(lambda: _init(address))
    except Exception as error:  # of many types, including Exception itself
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--ray {address}: no Ray cluster can be reached there ({reason}); start one with "
            "`ray start --head`, pass its HOST:PORT, or pass --ray local"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray's handler would end the process silently
    try:
        yield
    finally:
        ray.shutdown()


def start(begin: Callable[[], T]) -> T:
    """Calls begin(), which starts a part of Ray; retries after Ray's timeout of 30 s.

    On a machine with 2 cores and a load of 9 one of three starts timed out.
    """
    for left in range(STARTS, 0, -1):
        try:
            return begin()
        except Exception as error:
            if left == 1 or "timed out during startup" not in str(error):
                raise
    raise AssertionError


def nodes(size: Size) -> list[Node]:
    """The live nodes that can hold a worker of that size."""
    alive = [each for each in ray.nodes() if each["Alive"]]
    cards = any(each["Resources"].get("GPU") for each in alive)
    found = []
    for each in alive:
        has = each["Resources"]
        gpus = size.gpus if size.gpus is not None else float(cards and size.cpus is None)
        cpus = size.cpus if size.cpus is not None else 1.0 if gpus else has.get("CPU", 0.0)
        wants = [(cpus, has.get("CPU", 0.0)), (gpus, has.get("GPU", 0.0))]
        fits = min((int(there / each) for each, there in wants if each), default=0)
        if fits:
            name = each["NodeManagerHostname"]
            found.append(Node(each["NodeID"], name, fits, cpus, gpus))
    return found


def refuse_without_nodes(size: Size) -> list[Node]:
    """nodes(size); raises ConfigError, listing all nodes' resources, if there are none."""
    found = nodes(size)
    if not found:
        there = [each["Resources"] for each in ray.nodes() if each["Alive"]]
        listed = "; ".join(
            f"{each.get('CPU', 0):g} CPUs, {each.get('GPU', 0):g} GPUs" for each in there
        )
        raise ConfigError(
            f"--ray-worker {size}: no node of the Ray cluster has these resources; its nodes have "
            f"{listed or 'nothing'}"
        )
    return found


def options(node: Node, *, anywhere: bool = False) -> dict[str, Any]:
    """Ray's options to place one worker on a node, or `anywhere` it fits."""
    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
    # numba counts CPUs itself; torch reads OMP_NUM_THREADS, which Ray sets.
    threads = {"NUMBA_NUM_THREADS": str(max(1, int(node.cpus)))}
    return {
        "num_cpus": node.cpus, "num_gpus": node.gpus, "runtime_env": {"env_vars": threads},
        "scheduling_strategy": "SPREAD" if anywhere else on,
    }  # fmt: skip


def _init(address: str) -> None:
    here = address == "local"
    ray.init(
        address=address,
        include_dashboard=False if here else None,
        runtime_env=None if here else _code(),
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _code() -> dict[str, Any]:
    return {
        "py_modules": [str(HOME / name) for name in CODE],
        "excludes": ["files/", "__pycache__/", "*.h5", "*.so"],
    }
