"""What tests/fake_gpu/test_pretended_cuda.py runs on a device that is none, besides
tests/kernels/test_gpu.py.

The arithmetic there is the CPU's, so that a run on it equals the CPU's to the last byte.
"""

import json

import pytest
import torch

from cache.store import read_table, write_table
from kernels.answers.top1 import adapter_top1
from kernels.contrastive import gpu as contrastive_gpu
from pipeline.extraction.extract import extract
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters
from tests.cli.commands import call
from tests.fake_gpu.pretended_cuda import DEVICE, Graph, Refused
from tests.kernels.steps import draw, on
from tests.runs.small_runs import config, small

SGD = {"optimizer": "sgd", "momentum": 0.0}
RUNS = {
    "fedavg": {},
    "adaptive server": {"method": "fedadam"},
    "momentum": {"method": "fedavgm"},
    "scaffold": {"method": "scaffold", **SGD},
    "ditto": {"method": "ditto"},
    "fedper": {"method": "fedper"},
    "median": {"method": "median", "byzantine": 1},
    "trimmed mean": {"method": "trimmed-mean"},
    "krum": {"method": "krum"},
    "central": {"method": "central"},
    "local": {"method": "local"},
    "zero-shot": {"method": "zero-shot"},
    "pulled": {"method": "fedprox", "mu": 0.1},
    "fewer clients": {"client_fraction": 0.5, "dropout": 0.3, "stragglers": 0.3},
    "private": {"clip": 0.1, "noise": 1.0},
    "half": {"payload": "fp16"},
    "by loss": {"choose": "loss", "partition": "iid", "clients": 2},
    "the last": {"choose": "last", "method": "ditto", "payload": "int8"},
    "weighed": {
        "method": "scaffold",
        "optimizer": "sgd",
        "momentum": 0.0,
        "weighting": "rows",
        "payload": "int8",
        "clip": 0.01,
    },
    "own layers": {"method": "fedper", "payload": "int8"},
    "clipped": {"method": "krum", "keep": 2, "byzantine": 0, "clip": 0.01},
    "bytes": {"payload": "int8"},
    "both sides": {"mode": "FedAtBoth", "head": "clip-adapter", "loss": "class"},
    "text": {"mode": "FedAtTxt", "head": "cosine", "loss": "multi-positive"},
    "a scale": {"method": "rfa", "head": "scale", "weighting": "rows"},
    "low rank": {"head": "low-rank", "rank": 2, "optimizer": "adamw", "moments": "kept"},
    "dealt": {"partition": "dirichlet", "clients": 5, "personalise": 2},
}


def test_tensors_of_two_devices_are_refused():
    here, there = torch.ones(3).to("cuda"), torch.ones(3)
    with pytest.raises(Refused, match="on cuda:0 and on the CPU"):
        here + there
    assert (here + there.to(here.device) + torch.tensor(1.0)).tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError, match="numpy"):
        here.numpy()
    with pytest.raises(Refused, match="no product of integers"):
        here.long()[None] @ here.long()[:, None]


def test_a_kernel_on_a_cpu_tensor_is_refused():
    adapters, features, _, text, _ = draw(1, 1, 2, 16, 3)
    given = on(DEVICE, adapters, features)
    with pytest.raises((Refused, ValueError)):
        adapter_top1(*given, text, [torch.arange(4).to(DEVICE)], backend="triton")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_a_capture_refuses_what_waits(wait):
    x = torch.ones(3, device="cuda")
    with pytest.raises(Refused, match="capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        wait(x)
    wait(x)  # and only there


def test_a_replay_reads_what_is_there_then():
    x, out = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = Graph()
    with torch.cuda.graph(graph):
        doubled = x * 2
        out.copy_(doubled.cumsum(0))
    assert doubled.isnan().all()  # nothing has run yet
    for start in (1.0, 5.0):
        x.fill_(start)
        graph.replay()
        assert out.tolist() == [2 * start, 4 * start, 6 * start]


@pytest.mark.parametrize("refused", [False, True])
def test_a_product_is_added_where_it_belongs(refused, monkeypatch):
    """By addmm, and where torch refuses an addend of another type than the factors', by hand."""
    calls, real = [], torch.addmm

    def addmm(*args, **keywords):
        calls.append(keywords)
        if refused:
            raise RuntimeError("self and mat2 must have the same dtype")
        return real(*args, **keywords)

    monkeypatch.setattr(torch, "addmm", addmm)
    contrastive_gpu._adds_in_product.cache_clear()
    out, a, b = (torch.randn(n, m).to(DEVICE) for n, m in ((7, 5), (7, 9), (9, 5)))
    a, b = a.bfloat16(), b.bfloat16()
    for _ in range(2):
        wanted = out.cpu() + a.cpu().float() @ b.cpu().float()
        contrastive_gpu._add_product(a, b, out)
        torch.testing.assert_close(out.cpu(), wanted)
    assert sum("out" in keywords for keywords in calls) == 2 * (not refused) and len(calls) < 4
    contrastive_gpu._adds_in_product.cache_clear()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_equals_the_cpu_s(name, tmp_path):
    settings = config(**{"rounds": 2, "held_out": (("a",),)} | RUNS[name])
    for device in ("cpu", "cuda"):
        federate(small(), settings, runs=tmp_path, out=tmp_path / device, device=device,
                 backend="torch")  # fmt: skip
    there, here = (tmp_path / device for device in ("cpu", "cuda"))
    assert (here / "rounds.jsonl").read_bytes() == (there / "rounds.jsonl").read_bytes()
    if settings.method != "zero-shot":
        mine, cpu_s = (read_adapters(d / "adapter.safetensors")[0] for d in (here, there))
        assert mine.keys() == cpu_s.keys()
        assert all(torch.equal(mine[key], cpu_s[key]) for key in mine)


@pytest.mark.parametrize("workers", [0, 2])
def test_extraction_and_predictions_on_the_device(tree, weights, tmp_path, workers):
    tables = {}
    for device in ("cpu", "cuda"):
        cache = tmp_path / f"{device}.h5"
        extract(str(tree), model=str(weights), out=cache, device=device, store="fp32",
                workers=workers)  # fmt: skip
        tables[device] = read_table(cache)
    mine, cpu_s = (tables[d].features for d in ("cuda", "cpu"))
    assert 0 < abs(mine - cpu_s).max() < 0.03 * abs(cpu_s).max()  # float16 there, float32 here
    federate(tables["cuda"], config(held_out=(("art",),), rounds=2), runs=tmp_path,
             out=tmp_path / "run", device="cuda", backend="torch")  # fmt: skip
    said = call("predict", tree / "art", "--run", tmp_path / "run", "--model", weights,
                "--device", "cuda")  # fmt: skip
    assert sum("/art/" in line for line in said.stdout.splitlines()) == 12


def test_a_sweep_on_the_device(tmp_path):
    write_table(tmp_path / "c.h5", small())
    for device in ("cpu", "cuda"):
        call("sweep", tmp_path / "c.h5", "--grid", "lr=1e-4,1e-2", "--rounds", 3, "--batch", 8,
             "--device", device, "--backend", "torch", "--out", tmp_path / device)  # fmt: skip
    found = [(tmp_path / d / "trials.jsonl").read_text().splitlines() for d in ("cuda", "cpu")]
    mine, cpu_s = ([json.loads(line)["results"] for line in lines] for lines in found)
    assert mine == cpu_s and len(mine) == 2
