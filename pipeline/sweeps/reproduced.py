"""The reproduced table: results over seeds next to zero-shot and the released figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.runs.metrics import mean_and_std
from pipeline.runs.notes import few
from pipeline.runs.results import FIGURES, aligned, arrow, mean_results, percent
from pipeline.settings import RunConfig
from pipeline.terminal import counted, printable

NAME = "reproduced.json"


def compared(
    by_seed: Mapping[int, Sequence[dict[str, Any]]], released: Mapping[str, float]
) -> dict[str, Any]:
    """Compares results over seeds with released ones: {"seeds", "rows", "mean"}.

    by_seed   seed -> the "results" of `federate --json`, with the same folds for each seed
    released  held-out domain -> overall accuracy; may be empty
    """
    seeds = sorted(by_seed)
    first = by_seed[seeds[0]]
    rows = [
        _row(fold["held_out"] or "none", [by_seed[s][f] for s in seeds], released)
        for f, fold in enumerate(first)
    ]
    named = {row["held_out"] for row in rows}
    whole = {"mean": sum(released.values()) / len(released)} if named == set(released) else {}
    means = _row("mean", [mean_results(by_seed[s]) for s in seeds], whole)
    return {"seeds": seeds, "rows": rows, "mean": means}


def table_of(document: Mapping[str, Any]) -> str:
    """The object of `reproduce` as text for people, accuracies in percent."""
    released = any(row["released"] is not None for row in document["rows"])
    rows = [["held out", *FIGURES, "std", *(["released", "difference"] if released else [])]]
    for row in [*document["rows"], document["mean"]]:
        cells = [arrow(row["zero_shot"][name], row[name]["mean"]) for name in FIGURES]
        rows.append([row["held_out"], *cells, percent(row["overall"]["std"])])
        if released:
            rows[-1] += [percent(row["released"]), _points(row["difference"])]
    note = (
        "accuracy in %, zero-shot -> adapter, mean of "
        f"{counted(len(document['seeds']), 'seed')}; std: of overall"
    )
    if released:
        note += "; released: overall in the released code's README; difference: ours minus released"
    return "\n".join([aligned(rows), note, *map(printable, doubts(document))])


def doubts(document: Mapping[str, Any]) -> list[str]:
    """Ways in which these figures differ from the paper's experiment; [] if they do not."""
    said = []
    if document["counts"]:
        said.append(f"not the published images: {few(document['counts'], 1)}")
    if document["counts"] is None:
        said.append("no counts are published for these images: they were not checked")
    if document["lost"]:
        seeds = ", ".join(map(str, document["lost"]))
        said.append(f"left out of all means, because their training failed: seeds {seeds}")
    if document["rounds"] != RunConfig.rounds:
        said.append(f"{document['rounds']} rounds; the released experiment has {RunConfig.rounds}")
    if document["dataset"] == "pacs" and document["model"] != "ViT-B/32":
        said.append(f"features of {document['model']}; the released figures are ViT-B/32's")
    return said


def _row(
    held_out: str, results: Sequence[Mapping[str, Any]], released: Mapping[str, float]
) -> dict[str, Any]:
    spread = {name: mean_and_std([one[name] for one in results]) for name in FIGURES}
    published, overall = released.get(held_out), spread["overall"]["mean"]
    known = published is not None and overall is not None
    return {
        "held_out": held_out,
        "zero_shot": {
            name: mean_and_std([one["zero_shot"][name] for one in results])["mean"]
            for name in FIGURES
        },
        **spread,
        "released": published,
        "difference": overall - published if known else None,
    }


def _points(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.2f}"
