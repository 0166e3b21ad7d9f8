"""The stages of the GPU check, each printing JSON lines: ...stages NAME full|quick|pretend.

A line's "summary" appears in the table at the end.
"""

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import kernels, kernels_cuda, machine, rounds, rounds_cuda
from benchmarks.compare import Fault
from benchmarks.gpu_check.sizes import CUDA, SIZES, Lines, Size
from benchmarks.gpu_check.variants import variants  # noqa: F401  main finds it by its name
from benchmarks.rows import time as in_words
from cache.table import FeatureTable
from kernels.adapter import AdamSettings
from kernels.backends import pick_backend
from kernels.step import adapter_steps
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan, steps_a_round
from pipeline.federation.training import Progress, advance, begin, to_device

ROOT = Path(__file__).resolve().parents[2]


def main(name: str, size: str) -> int:
    """Exit code: 1 if a line has an "error"."""
    sound = True
    for line in globals()[name](SIZES[size]):
        sound = sound and "error" not in line
        print(json.dumps(line), flush=True)
    return 0 if sound else 1


def versions(size: Size) -> Lines:
    """The machine and its peak rates."""
    described = machine.describe(CUDA)
    gpu, packages = described["gpu"], described["packages"]
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    yield {
        "machine": described, "capability": capability,
        "summary": f"{gpu['name']}, capability {capability}, CUDA {gpu['cuda']}, torch "
                   f"{packages['torch']}, triton {packages['triton']}",
    }  # fmt: skip
    found = machine.ceilings(CUDA, True, *size.ceiling)
    yield {
        "ceilings": found,
        "summary": f"float32 products {found['gemm_flops_per_second'] / 1e12:.1f} Tflop/s, copy "
                   f"{found['copy_bytes_per_second'] / 1e12:.2f} TB/s",
    }  # fmt: skip


def tests(size: Size) -> Lines:
    """tests/kernels/test_gpu.py in parallel processes, each with its own GPU context."""
    python = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu"]
    python += ["-p", "tests.fake_gpu.pretended_cuda"] if size is SIZES["pretend"] else []
    python += ["-k", size.tests] if size.tests else []
    file = "tests/kernels/test_gpu.py"
    listed = _words([*python, "--collect-only", "-q", "--no-header", file])
    names = [line for line in listed if "::" in line and not line.startswith("SKIPPED")]
    if not names:
        yield {"error": "no tests were collected", "output": listed[-20:]}
        return
    shards = [names[k :: size.shards] for k in range(size.shards)]
    running = [
        subprocess.Popen(
            [*python, "-v", "--tb=short", "--no-header", *shard], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment(),
        )
        for shard in shards if shard
    ]  # fmt: skip
    heard: queue.Queue[tuple[int, str | None]] = queue.Queue()
    for k, process in enumerate(running):
        threading.Thread(target=_hear, args=(k, process, heard), daemon=True).start()
    counts: dict[str, int] = {}
    outputs: list[list[str]] = [[] for _ in running]
    unfinished = len(running)
    while unfinished:
        k, line = heard.get()
        if line is None:
            unfinished -= 1
            if running[k].wait():
                yield {"error": f"pytest exited with {running[k].returncode}",
                       "output": outputs[k][-60:]}  # fmt: skip
            continue
        outputs[k].append(line)
        if found := re.match(r"(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            test, outcome = found.groups()
            counts[outcome] = counts.get(outcome, 0) + 1
            wrong = {"error": outcome.lower(), "summary": f"{outcome} {test}"}
            yield {"test": test, "outcome": outcome} | (
                wrong if outcome in ("FAILED", "ERROR") else {}
            )
    yield {"counts": counts, "summary": f"{len(names)} tests: {counts}"}


def _hear(k: int, process: "subprocess.Popen[str]", heard: "queue.Queue[Any]") -> None:
    with process.stdout as stream:
        for line in stream:
            heard.put((k, line.rstrip()))
    heard.put((k, None))


def pacs(size: Size) -> Lines:
    """Compare the servers' adapters and accuracies of the same rounds on the CPU and the GPU."""
    table, config = _table(size), rounds.config(size.rounds)
    ended: dict[str, tuple[Progress, list]] = {}
    first = pick_backend("auto", torch.device("cpu"))
    for device, backend in (("cpu", first), ("cuda", "triton"), ("cuda", "torch")):
        plan = build_plan(table, config)
        cached = to_device(table, torch.device(device))
        graph = capture_rounds(plan, cached, backend) if device == "cuda" else None
        engine, progress = Engine(plan, cached, backend, graph=graph), begin(plan, cached)
        reports = []
        for _ in range(size.rounds):
            progress, report = advance(engine, progress)
            reports.append(report)
        ended[f"{device} {backend}"] = progress, reports
    (cpu, told), *others = ended.values()
    for name, (progress, also) in zip([*ended][1:], others, strict=True):
        gaps = (progress.state["server"].cpu() - cpu.state["server"]).abs().flatten().double()
        most = {f"p{q:g}": float(np.quantile(gaps.numpy(), q / 100)) for q in (50, 99, 99.9, 100)}
        pairs = [
            (mine, theirs)
            for a, b in zip(told, also, strict=True)
            for mine, theirs in zip(a.folds, b.folds, strict=True)
        ]
        accuracy = max(
            abs(value - theirs.val_accuracy[domain])
            for mine, theirs in pairs for domain, value in mine.val_accuracy.items()
        )  # fmt: skip
        # Not the largest difference: Adam turns rounding of a gradient near 0 into a part of lr.
        wrong = not (most["p99.9"] <= 1e-4 and accuracy < 0.01)
        line = {
            "case": name, "gaps": most, "accuracy_gap": accuracy,
            "summary": f"{name} against the CPU: 99.9 % of the weights within {most['p99.9']:.1e}, "
                       f"validation accuracies within {accuracy:.4f}",
        }  # fmt: skip
        yield line | ({"error": "differs from the CPU"} if wrong else {})


def round(size: Size) -> Lines:
    """Time of a captured round on the GPU, host time on top, and time per kernel."""
    table = _table(size)
    plan = build_plan(table, rounds.config(1000))
    cached = to_device(table, CUDA)
    started = time.perf_counter()
    graph = capture_rounds(plan, cached, "triton")
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    yield {"capture_seconds": seconds, "summary": f"compiling and capturing: {seconds:.1f} s"}
    engine, progress = Engine(plan, cached, "triton", graph=graph), begin(plan, cached)
    progress, _ = advance(engine, progress)
    replays, whole = [], []
    for _ in range(size.replays):
        replays.append(_seconds(graph.graph.replay))
        started = time.perf_counter()
        progress, _ = advance(engine, progress)
        whole.append(time.perf_counter() - started)
    replay, all_of_it = float(np.median(replays)), float(np.median(whole))
    steps = len(graph.layout.live)
    lane_steps = sum(steps_a_round(lane) for lane in plan.lanes)
    traffic = 6 * 4 * 2 * size.width * (size.width + 1) * lane_steps / replay
    yield {
        "replay_seconds": replay, "round_seconds": all_of_it, "steps": steps,
        "bytes_per_second": traffic,
        "summary": f"{len(plan.lanes)} lanes, {steps} steps: replay {in_words(replay)}, "
                   f"{in_words(replay / steps)} per step, {traffic / 1e12:.2f} TB/s; "
                   f"plus {in_words(max(all_of_it - replay, 0))} on the host",
    }  # fmt: skip
    yield from _by_kernel(graph.graph.replay)


def lanes(size: Size) -> Lines:
    """Many configs in parallel."""
    table = _table(size)
    ceilings = machine.ceilings(CUDA, True, *size.ceiling)
    torch.cuda.reset_peak_memory_stats()
    yield from _rows([rounds_cuda.joined(table, size.trials, size.rounds, ceilings)])
    peak = torch.cuda.max_memory_allocated()
    yield {"peak_bytes": peak, "summary": f"peak memory {peak / 1e9:.1f} GB"}


def contrastive(size: Size) -> Lines:
    """Loss and gradients against plain torch; other projects only in ./run.sh bench."""
    ceilings = machine.ceilings(CUDA, True, *size.ceiling)
    yield from _rows(
        kernels_cuda.run(CUDA, ceilings, True, size.pairs, others=False, side=2 * size.ceiling[0])
    )


def extraction(size: Size) -> Lines:
    """Images/s of encode_images for a ViT-B/32 with random weights, from pixels on the CPU."""
    from safetensors.torch import save_file

    from pipeline.encoder.model import encode_images, import_clip, load_model

    clip = import_clip()
    heads = (1, 64, 16, 77, 49408, 64, 1, 2) if size.width < 512 else (
        12, 768, 32, 77, 49408, 512, 8, 12)  # fmt: skip
    resolution = 32 if size.width < 512 else 224
    torch.manual_seed(0)
    module = clip.model.CLIP(size.width, resolution, *heads)
    clip.model.convert_weights(module)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drawn.safetensors"
        save_file(module.state_dict(), file)
        model = load_model(str(file), CUDA)
        pixels = torch.randint(256, (size.images, resolution, resolution, 3), dtype=torch.uint8)
        truth = load_model(str(file), torch.device("cpu"))
        mine, cpu_s = (encode_images(m, pixels[:2]) for m in (model, truth))
        gap = float((mine - cpu_s).abs().max() / cpu_s.abs().max())
        yield {
            "gap": gap, "summary": f"features within {gap:.1e} of the CPU's, relative",
        } | ({"error": "features differ from the CPU's"} if not gap < 0.05 else {})  # fmt: skip

        def encode() -> None:
            for part in pixels.split(size.batch):
                encode_images(model, part)

        encode()
        seconds = min(_seconds(encode) for _ in range(3))
        yield {
            "images_per_second": size.images / seconds,
            "summary": f"{size.images / seconds:,.0f} images/s at batch {size.batch}",
        }


def sanitizer(size: Size) -> Lines:
    """NVIDIA's memory checker on small steps of each kernel."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    )
    if tool is None:
        yield {"skipped": "no compute-sanitizer", "summary": "skipped: compute-sanitizer not found"}
        return
    ours = [sys.executable, "-m", "benchmarks.gpu_check.stages", "small_steps", "pretend"]
    said = _words([tool, "--tool", "memcheck", "--error-exitcode", "9", *ours])
    found = [line for line in said if "ERROR SUMMARY" in line]
    clean = bool(found) and all("0 errors" in line for line in found)
    line = {"output": said[-40:], "summary": found[-1] if found else "no result"}
    yield line | ({} if clean else {"error": "compute-sanitizer reported errors"})


def small_steps(size: Size) -> Lines:
    """Run by the sanitizer stage: every kernel once, at sizes that leave partial tiles."""
    from kernels.answers.top1 import adapter_top1
    from kernels.contrastive import contrastive as loss

    adapters, features, labels, text = kernels.problem(2, 33, 5, 40, CUDA)
    rows = torch.randint(40, (2, 2, 21), dtype=torch.int32)
    settings = AdamSettings(*torch.full((5, 2), 0.5, dtype=torch.float64))
    adapter_steps(adapters, features, labels, text, rows, settings, logit_scale=10.0,
                  backend="triton")  # fmt: skip
    asked = [torch.arange(40, device=CUDA)] * 2
    adapter_top1(adapters, features, text, asked, backend="triton")
    for precision in ("exact", "fast"):
        x = torch.randn(2, 150, 40, device=CUDA).requires_grad_()
        loss(x[0], x[1], 10.0, precision=precision, backend="triton").backward()
    torch.cuda.synchronize()
    yield {"summary": "steps, answers and contrastive ran"}


def _by_kernel(call: Callable[[], object]) -> Lines:
    """GPU time of one call per kernel, from torch's profiler."""
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    if kinds[0] not in torch.profiler.supported_activities():
        yield {"skipped": "profiler", "summary": "no times per kernel: torch's profiler lacks CUDA"}
        return
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)
    total = sum(event.device_time_total for event in events) or 1
    for event in events[:12]:
        yield {
            "kernel": event.key, "count": event.count, "microseconds": event.device_time_total,
            "summary": f"{event.key[:48]}: {event.count} x "
                       f"{event.device_time_total / max(event.count, 1):.1f} us, "
                       f"{event.device_time_total / total:.0%}",
        }  # fmt: skip


def _rows(found: Any) -> Lines:
    for one in found:
        if isinstance(one, Fault):
            yield {"case": one.case, "error": one.why, "summary": f"{one.case}: {one.why[:100]}"}
            continue
        speed = f", {one.times_baseline:.2f} times as fast" if one.times_baseline else ""
        share = f", {one.of_ceiling:.0%} of the ceiling" if one.of_ceiling else ""
        line = asdict(one)
        line["distance"] = line.pop("error")  # from float64; in a line, "error" means a failure
        line["summary"] = f"{one.shape}, {one.case}: {in_words(one.p50)}{speed}{share}"
        yield line


def _table(size: Size) -> FeatureTable:
    table = rounds.pacs_shaped()
    if size.rows is None:
        return table
    some = np.linspace(0, len(table.labels) - 1, size.rows).astype(int)
    return replace(
        table, features=table.features[some, : size.width].copy(), labels=table.labels[some],
        domains=table.domains[some], text_features=table.text_features[:, : size.width].copy(),
    )  # fmt: skip


def _seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _words(command: list[str]) -> list[str]:
    done = subprocess.run(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=_environment(), check=False,
    )  # fmt: skip
    return done.stdout.splitlines()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
