"""What a run cost, beside the protocol that encodes every image at every step."""

from markupsafe import Markup

from pipeline.predictions import adapter_numbers
from pipeline.report_data import RunData
from pipeline.report_maps import Answers
from pipeline.report_parts import Cell, figure, key, section, table
from pipeline.svg_bars import Bar, bar_chart

CLIP_NUMBERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
}
"""sum(p.numel() for p in model.parameters()) of clip.model.CLIP at the sizes of each name."""
PAYLOAD = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes a number


def costs_part(
    run: RunData, answers: Answers | str, images_per_second: float | None = None
) -> Markup:
    """Images encoded, seconds and bytes: this run, the uncached protocol, and their ratio.

    images_per_second  at which this machine encodes, as extract prints it: gives the uncached
                       protocol's seconds, which nobody measured; without it they are left out
    """
    rows = _encodes(run, answers, images_per_second) + _bytes(run)
    lead = (
        "Uncached: the released code's loop, which encodes each train row once a local epoch and "
        "every row once more a round for the accuracies."
    )
    if isinstance(answers, str):
        lead += f" Its images cannot be counted here: {answers}"
    elif images_per_second is None:
        lead += (
            " Its seconds were not measured; report --images-per-second with the rate that "
            "extract printed adds what the encoding alone would take."
        )
    shown = [
        [Cell(name, None, "word"), Cell(_text(ours, unit), ours), Cell(_text(theirs, unit), theirs),
         Cell(_ratio(theirs, ours), theirs / ours if ours and theirs else "")]
        for name, unit, ours, theirs in rows
    ]  # fmt: skip
    picture = _picture(rows)
    return section(
        "Cost against the uncached protocol",
        lead,
        table(["", "this run", "compared with", "ratio"], shown),
        picture,
    )


Row = tuple[str, str, float | None, float | None]


def _encodes(run: RunData, answers: Answers | str, images_per_second: float | None) -> list[Row]:
    rows_read = float(run.cache["rows"]) if isinstance(run.cache.get("rows"), int) else None
    train = run.seconds.get("train")
    if isinstance(answers, str):
        return [("images encoded", "", rows_read, None), ("seconds of training", "s", train, None)]
    encodes = float(answers.encodes_a_round * run.rounds_done)
    rate = images_per_second
    rows: list[Row] = [("images encoded; uncached", "", rows_read, encodes)]
    if rate:
        rows.append(
            (f"seconds to encode them at {rate:,.0f} images/s; uncached", "s",
             rows_read and rows_read / rate, encodes / rate)
        )  # fmt: skip
    return [*rows, ("seconds of training, all of this run", "s", train, None)]


def _bytes(run: RunData) -> list[Row]:
    file = run.folder / "adapter.safetensors"
    if not file.exists() or run.settings.get("method") in ("local", "central", "zero-shot"):
        return []
    each = PAYLOAD.get(str(run.settings.get("payload", "fp32")), 4)
    adapter = float(each * adapter_numbers(file))
    clip = CLIP_NUMBERS.get(str(run.cache.get("model")))
    whole = float(4 * clip) if clip else None
    return [("bytes a client sends a round, and receives; all of CLIP", "B", adapter, whole)]


def _picture(rows: list[Row]) -> Markup:
    first = rows[0]
    if not (first[2] and first[3]):
        return Markup("")
    bars = [
        Bar("this run: every image once", "c0", first[2], _text(first[2], "")),
        Bar("uncached protocol", "c1", first[3], _text(first[3], "")),
    ]
    text = f"{_text(first[2], '')} against {_text(first[3], '')}"
    return figure("Images through CLIP", bar_chart("Images through CLIP", text, bars),
                  keys=[key("from the cache", "c0", "bar"), key("uncached", "c1", "bar")])  # fmt: skip


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "\u2013"
    if unit == "s":
        return duration(value)
    if unit == "B":
        return f"{value / 1e6:,.2f} MB"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """14.3 s, 3 min 20 s, 7 h 18 min."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min {rest} s"
    )


def _ratio(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:,.3g}x" if ours and theirs else ""
