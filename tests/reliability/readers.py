"""What the fuzzer damages and what reads it: every kind of file.

Kinds are strict where whatever a reader makes of a damaged file must be what the undamaged one
gives; not where a person may write the file, or a forger made its checksums right again.
"""

from pipeline import digests as seals
from tests.reliability import damaged_caches as caches
from tests.reliability import damaged_runs as runs
from tests.reliability import damaged_sweeps as sweeps
from tests.reliability.taken import Kind

KINDS = {
    "cache": Kind(caches.make_cache, caches.read_cache),
    "cache, forged": Kind(caches.make_cache, caches.read_forged_cache, strict=False),
    "cache, unfinished": Kind(caches.make_partial, caches.read_partial),
    "npz": Kind(caches.make_npz, caches.read_imported),
    "npz, forged": Kind(caches.make_members, caches.read_member, strict=False),
    **{
        f"{name}, {'finished' if finished else 'unfinished'} run": Kind(
            runs.make_run(name, finished), runs.read_run_file(name, finished)
        )
        for finished in (True, False)
        for name in seals.FINISHED
        if finished or name != "summary.json"
    },
    "done": Kind(runs.make_run("done", True), runs.read_run_file("done", True)),
    **{
        f"{name}, older run": Kind(
            runs.make_run(name, True), runs.read_run_file(name, True, old=True), strict=False
        )
        for name in ("config.json", "rounds.jsonl", "summary.json")
    },
    "adapter.safetensors, forged": Kind(runs.make_facts, runs.read_facts, strict=False),
    "trials.jsonl": Kind(sweeps.make_sweep("trials.jsonl"), sweeps.read_sweep_file("trials.jsonl")),
    "trials.jsonl, forged": Kind(
        sweeps.make_sweep("trials.jsonl"), sweeps.read_forged_trials, strict=False
    ),
    "spec.json": Kind(sweeps.make_sweep("spec.json"), sweeps.read_sweep_file("spec.json")),
    "sweep.yaml": Kind(lambda place: [sweeps.YAML, sweeps.GRID], sweeps.read_spec, strict=False),
    "reproduced.json": Kind(sweeps.make_reproduced, sweeps.read_reproduced),
    "adapter to start from": Kind(runs.make_first_adapter, runs.read_first_adapter, strict=False),
    "PACS.zip.part.json": Kind(sweeps.make_note, sweeps.read_note, strict=False),
    "bench.jsonl": Kind(sweeps.make_bench, sweeps.read_bench_file, strict=False),
}
