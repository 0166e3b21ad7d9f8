"""A table of test accuracies as text, LaTeX, CSV or Markdown."""

import re
from collections.abc import Callable

from pipeline.reports.csv_tables import csv_text, safe_cell
from pipeline.reports.table_inputs import value_word
from pipeline.reports.table_words import foot, head
from pipeline.reports.tables import Cell, Row, Table
from pipeline.runs.results import aligned
from pipeline.terminal import printable

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # after the \\ of a row these are its options
    **{each: f"\\{each}" for each in "&%$#_{}"},
}  # fmt: skip
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&$#])")

MARKS = {
    "text": ("{} ", "{}*", "{}_"),
    "markdown": ("{}", "**{}**", "<u>{}</u>"),
    "latex": ("{}", r"\textbf{{{}}}", r"\underline{{{}}}"),
}
"""By format, how a cell of no place, the first and the second is written."""

Grid = list[list[str]]


def as_text(table: Table) -> str:
    """Aligned columns; * marks the best of a column, _ the second."""
    parts = [list(head(table)), aligned(_grid(table, _cell_as("text"), str)).split("\n")]
    if table.against is not None:
        parts.append([f"difference from {printable(table.against)}"])
        parts[-1] += aligned(_grid(table, _difference, str)).split("\n")
    marks = ["* best, _ second."] if table.is_marked else []
    parts.append([*marks, *foot(table)])
    return "\n\n".join("\n".join(printable(line) for line in part) for part in parts if part)


def as_markdown(table: Table) -> str:
    """Pipe tables; the best of a column in bold, the second underlined."""
    parts = [[escaped_markdown(line)] for line in head(table)]
    parts.append(_pipes(_grid(table, _cell_as("markdown"), escaped_markdown)))
    if table.against is not None:
        parts.append([f"Difference from {escaped_markdown(table.against)}"])
        parts.append(_pipes(_grid(table, _difference, escaped_markdown)))
    parts += [[escaped_markdown(line)] for line in foot(table)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def as_latex(table: Table) -> str:
    r"""A tabular of booktabs (\usepackage{booktabs}); what is said about it in comments."""
    lines = [f"% {printable(line)}" for line in head(table)]
    lines += _tabular(table, _grid(table, _cell_as("latex"), escaped_latex))
    if table.against is not None:
        lines += [f"% difference from {printable(table.against)}"]
        lines += _tabular(table, _grid(table, _latex_difference, escaped_latex))
    lines += [f"% {printable(line)}" for line in foot(table)]
    return "\n".join(lines)


def as_csv(table: Table) -> str:
    """A row a row: its settings, then of each column mean, std and n; accuracies are fractions.

    With a named row also of each column difference, low and high.
    """
    names = ["mean", "std", "n"]
    names += ["difference", "low", "high"] if table.against is not None else []
    heads = [head if name == "mean" else f"{head} {name}" for head in _heads(table)
             for name in names]  # fmt: skip
    rows: list[list[object]] = [["row", *table.by, *heads]]
    for row in table.rows:
        cells = [len(c.seeds) if n == "n" else getattr(c, n) for c in row.cells for n in names]
        rows.append([row.label, *(row.settings.get(name) for name in table.by), *cells])
    shown = ([_csv_cell(cell) for cell in row] for row in rows)
    return csv_text(shown, "\n").removesuffix("\n")


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": as_text, "latex": as_latex, "csv": as_csv, "markdown": as_markdown,
}  # fmt: skip


def escaped_latex(text: str) -> str:
    """A name as LaTeX prints it, on one line."""
    return "".join(LATEX.get(character, character) for character in printable(text))


def escaped_markdown(text: str) -> str:
    """A name as Markdown prints it, in a cell of a table too."""
    return MARKDOWN.sub(r"\\\1", printable(text))


def _csv_cell(cell: object) -> object:
    return safe_cell(printable(cell)) if isinstance(cell, str) else cell


def _heads(table: Table) -> list[str]:
    several = len({column.dataset for column in table.columns}) > 1
    return [f"{c.dataset}: {c.name}" if several else c.name for c in table.columns]


def _grid(table: Table, cell: Callable[[Cell], str], name: Callable[[str], str]) -> Grid:
    """All cells as strings, the heads first; `name` escapes what comes from outside."""
    rows = [[*(name(head) for head in (*table.by, "seeds", *_heads(table)))]]
    for row in table.rows:
        values = [value_word(row.settings[n]) for n in table.by] if row.settings else [row.label]
        values += ["-"] * (len(table.by) - len(values))
        rows.append([*map(name, values), _seeds(row), *map(cell, row.cells)])
    return rows


def _seeds(row: Row) -> str:
    """How many seeds its cells have: 3, or 2-3."""
    counts = [len(cell.seeds) for cell in row.cells if cell.seeds] or [0]
    few, most = min(counts), max(counts)
    return str(few) if few == most else f"{few}-{most}"


def _cell_as(form: str) -> Callable[[Cell], str]:
    between, missing = (r" $\pm$ ", "--") if form == "latex" else (" \u00b1 ", "-")

    def written(cell: Cell) -> str:
        std = "" if cell.std is None else f"{between}{100 * cell.std:.2f}"
        shown = missing if cell.mean is None else f"{100 * cell.mean:.2f}{std}"
        return MARKS[form][cell.place or 0].format(shown)

    return written


def _difference(cell: Cell) -> str:
    if cell.low is None or cell.high is None or cell.difference is None:
        return "-"
    return f"{100 * cell.difference:+.2f} ({100 * cell.low:+.2f} to {100 * cell.high:+.2f})"


def _latex_difference(cell: Cell) -> str:
    found = _difference(cell)
    return "--" if found == "-" else re.sub(r"([+-]\d+\.\d+)", r"$\1$", found)


def _pipes(grid: Grid) -> list[str]:
    rule = ["---"] + ["---:"] * (len(grid[0]) - 1)
    return [f"| {' | '.join(row)} |" for row in (grid[0], rule, *grid[1:])]


def _tabular(table: Table, grid: Grid) -> list[str]:
    align = "l" * len(table.by) + "r" * (len(grid[0]) - len(table.by))
    lines = [" & ".join(row) + r" \\" for row in grid]
    return [rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0], r"\midrule", *lines[1:],
            r"\bottomrule", r"\end{tabular}"]  # fmt: skip
