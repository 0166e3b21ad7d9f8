"""Tables as text, LaTeX, CSV and Markdown: hostile names, marks, the table a sweep ends with."""

import csv
import io
import json
import re

import pytest

from pipeline.cli.console import show_comparison
from pipeline.reports.table_formats import FORMATS, escaped_latex
from pipeline.reports.tables import build_table, records, records_of
from tests.cli.commands import call
from tests.reports.report_folders import HOSTILE
from tests.reports.table_folders import facts, made, result, swept

NAMES = (
    *HOSTILE, "a_b%c&d#e$f{g}h~i^j\\k", "\\input{/etc/passwd}", "}\\end{tabular}", "[2cm] x", "* y",
    "pipe | and `code` **bold**", "\x1b[31mred\nnew line\u202e", 'say "x", then y', "-1+2",
    "@SUM(A1)", "\ttab", "&amp;", "~~struck~~", "mean",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_break_no_format(tmp_path, name):
    for seed in (0, 1):
        folds = [result("plain", 0.5 + seed / 10), result(name, 0.25)]
        made(tmp_path / f"{seed}", folds, seed, facts(name, name), loss=name if seed else "class")
    shown = {}
    for written in FORMATS:
        found = call("table", tmp_path, "--format", written, "--against", "class")
        assert (found.stdout + found.stderr).replace("\n", "").isprintable()
        shown[written] = found.stdout
    rows = list(csv.reader(io.StringIO(shown["csv"]), strict=True))
    assert len(rows) == 4 and len({len(row) for row in rows}) == 1
    for text in (text for row in rows for text in row):
        numeric = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", text)
        assert numeric or not text.startswith(("=", "+", "-", "@", "\t", "\r"))
    pipes = [re.sub(r"\\.", "", line) for line in shown["markdown"].splitlines()]
    assert {line.count("|") for line in pipes if line.startswith("|")} == {6}
    assert sum(line.startswith("|") for line in pipes) == 2 * 5
    sound_latex(shown["latex"])


def sound_latex(text: str) -> None:
    r"""Comments aside: only our commands, balanced braces, the cells of its head in each row, and
    no \\ with an option."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"\\\\\s*[\[*]", body)
    assert not re.search(r"\\midrule\s*[\[(]", body)
    single = re.sub(r"\\\\", " ", body)
    commands = set(re.findall(r"\\([a-zA-Z]+)", single))
    assert commands <= {"begin", "end", "toprule", "midrule", "bottomrule", "textbf", "underline",
                        "pm", "textbackslash", "textasciitilde", "textasciicircum", "textless",
                        "textgreater", "textbar"}  # fmt: skip
    plain = re.sub(r"\\[^a-zA-Z]", "", single)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and plain.count("$") % 2 == 0
    assert not set("%#_~^") & set(plain.replace("tabular", ""))
    for part in body.split(r"\begin{tabular}")[1:]:
        aligns = re.match(r"\{([lr]+)\}", part)[1]
        lines = [re.sub(r"\\[^a-zA-Z]", "", line) for line in part.splitlines() if " & " in line]
        assert lines and {line.count("&") for line in lines} == {len(aligns) - 1}


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("values", [{"method": ("fedavg",)}, {"method": ("fedavg", "median")},
                                    {"lr": (1e-3, 1e-2, 1e-1)}])  # fmt: skip
def test_a_sweep_over_one_setting_ends_with_its_table(tmp_path, capsys, values, seeds):
    ((name, own),) = values.items()
    trials = [{"settings": {name: value}, "seed": seed, "val_accuracy": 0.5,
               "results": [result("x", 0.5 + seed / 10)]}
              for value in own for seed in range(seeds)]  # fmt: skip
    show_comparison(swept(tmp_path / "s", trials))
    shown = capsys.readouterr().out
    assert bool(shown) == (len(own) > 1 and seeds > 1)
    if shown:
        assert all(f"\n{value}" in shown for value in own)
        assert "Test accuracy selected nothing" in shown and "compared, not selected" in shown


def test_a_sweep_over_two_settings_or_without_results_ends_without(tmp_path, capsys):
    trials = [{"settings": {"method": m, "lr": lr}, "seed": seed, "val_accuracy": 0.5,
               "results": [result("x", 0.5)]}
              for m, lr in (("fedavg", 1e-3), ("median", 1e-2)) for seed in range(2)]  # fmt: skip
    show_comparison(swept(tmp_path / "s", trials))
    show_comparison(swept(tmp_path / "t", [{"settings": {}, "seed": 0, "status": "failed"}]))
    assert not capsys.readouterr().out


def test_latex_escapes_one_character_at_a_time():
    for name in NAMES:
        assert escaped_latex(name) == "".join(map(escaped_latex, name))
    assert escaped_latex("a_b 5% \\") == r"a\_b 5\% \textbackslash{}"


def test_marks_and_spread_of_each_format(runs):
    text, latex, markdown = (call("table", runs, "--format", f).stdout
                             for f in ("text", "latex", "markdown"))  # fmt: skip
    assert "71.00 ± 1.41*" in text and "62.00 ± 1.00_" in text and "* best, _ second" in text
    assert r"\textbf{71.00 $\pm$ 1.41}" in latex and r"\underline{62.00 $\pm$ 1.00}" in latex
    assert "**71.00 ± 1.41**" in markdown and "<u>62.00 ± 1.00</u>" in markdown
    assert latex.splitlines()[0].startswith("% Test accuracy in %")
    shown = call("table", runs, "--format", "csv")
    (row,) = (r for r in csv.DictReader(io.StringIO(shown.stdout)) if r["row"] == "krum")
    assert float(row["photo"]) == pytest.approx(0.71) and row["photo n"] == "2"
    assert "Test accuracy selected nothing." in shown.stderr
    asked = json.loads(call("table", runs, "--json").stdout)
    assert asked == records([str(runs)]) == records_of(build_table([runs]))
