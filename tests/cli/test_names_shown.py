"""Names from outside, wherever they are printed: none steers a terminal or forges a line."""

import ast
import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from cache.store import write_table
from pipeline import terminal
from pipeline.cli.app import cli
from pipeline.progress import Bar
from tests.cli.commands import call
from tests.cli.test_streams import ran
from tests.conftest import ROOT, on_linux
from tests.runs.small_runs import config, run, small

LINE = "\nError: all is well"
MARK = f"a\x1b]0;HACKED\x07\x1b[31m\x9b2J\u202egnp{LINE}\r\u2028\u200b\x7f"
NEED_A_CACHE = (["--held-out"], ["--init-adapter"])
OURS = re.compile(r"\r|\x1b\[A|\n")  # what tqdm and the terminal's own newlines are made of


@given(st.text(st.characters(exclude_categories=())))
def test_printable_is_one_printable_line_that_keeps_what_prints(text):
    shown = terminal.printable(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    assert shown == text or not text.isprintable()
    kept = [c for c in text if c.isprintable()]
    assert all(c in shown for c in kept)


@given(st.text(st.characters(exclude_categories=())))
def test_a_guarded_stream_lets_lines_and_tabs_through_only(text):
    behind = io.StringIO(newline="")
    stream = terminal.Shown(behind)
    assert stream.write(text) == len(text)
    stream.flush()
    shown = behind.getvalue()
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert shown.count("\n") == text.count("\n")
    with pytest.raises(TypeError):
        stream.write(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("\x1b[2J", r"\x1b[2J"), ("a\nb", r"a\nb"), ("\u202etxt", r"\u202etxt"), ("\udcff", r"\udcff"),
     ("caf\u00e9 \u6f22 \u05d0", "caf\u00e9 \u6f22 \u05d0"), ("\x85\u2028", r"\x85\u2028")],
)  # fmt: skip
def test_what_is_shown_of_a_name(name, shown):
    assert terminal.printable(name) == shown


def test_a_bar_shows_words_that_cannot_steer(monkeypatch):
    behind = io.StringIO()
    monkeypatch.setattr(behind, "isatty", lambda: True)
    with Bar(total=3, desc=MARK, file=behind, mininterval=0, ncols=300) as bar:
        bar.set_postfix(name=MARK)
        bar.set_description(MARK)
        bar.update(2)
    assert "HACKED" in behind.getvalue()
    assert OURS.sub("", behind.getvalue()).isprintable()


def test_warnings_are_one_line():
    ours = terminal._warning_line(UserWarning(MARK), UserWarning, str(ROOT / "kernels" / "x.py"), 1)
    theirs = terminal._warning_line(f"first{LINE}", UserWarning, f"/lib/{MARK}.py", 1)
    for line in (ours, theirs):
        assert line.count("\n") == 1 and line[:-1].isprintable()
    assert "HACKED" in ours and "all is well" not in theirs.partition("(")[0]


def test_only_the_boundary_prints():
    """A new print or click.echo is a way past it."""
    doors = {
        "pipeline/cli/console.py": {"click.echo"},
        "pipeline/terminal.py": {"print"},
        "pipeline/flower/app.py": {"print"},
        "pipeline/extraction/demo_clip.py": {"print"},  # a script of ours, not a command
    }
    for file in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "cache").rglob("*.py")]):
        here = file.relative_to(ROOT).as_posix()
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text("utf-8")))
                 if isinstance(node, ast.Call)}  # fmt: skip
        found = calls & {"print", "click.echo", "click.secho", "sys.stdout.write",
                         "sys.stderr.write"}  # fmt: skip
        assert found <= doors.get(here, set()), here


@pytest.mark.parametrize(
    "words",
    [["federate", MARK], ["federate", f"--{MARK}"], [MARK], ["cache", MARK], ["download", MARK],
     ["cache", "info", "x", MARK], ["federate", "--batch", MARK], ["federate", "--device", MARK],
     ["sweep", "--grid", MARK], ["sweep", "--budget", MARK], ["report", MARK],
     ["predict", MARK, "--run", MARK], ["extract", "--model", MARK], ["extract", "--dataset", MARK],
     ["federate", "--init-adapter", MARK], ["flower", "supernode", MARK], ["cache", "merge", MARK],
     ["extract", "--prompt", MARK], ["reproduce", MARK], ["download", "pacs", "--url", MARK],
     ["extract", "--shard", MARK], ["federate", "--held-out", MARK], ["federate", "--preset", MARK],
     ["cache", "verify", MARK], ["cache", "import", MARK], ["cache", "export", MARK],
     ["table", MARK], ["table", ".", "--by", MARK], ["table", ".", "--against", MARK]],
    ids=lambda words: " ".join(words).replace(MARK, "MARK"),
)  # fmt: skip
def test_option_values_and_arguments(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "small.h5", small())
    words = ["federate", "small.h5", *words[1:]] if words[1:2] in NEED_A_CACHE else words
    result = CliRunner().invoke(cli, words)
    assert result.exit_code, result.output
    assert result.output.replace("\n", "").isprintable(), result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "all is well" not in result.stderr.splitlines()[-1][:20]


@on_linux("shows names on a terminal")
def test_no_hostile_name_reaches_the_terminal_as_it_is(tmp_path, weights):
    mark = MARK.replace("\r", "")  # a terminal gives \r\n for our own \n
    home = tmp_path / f"home {mark}"
    cases = [words for _, words in hostile(home, mark, weights)]
    seen = 0
    for words, (_, _, shown) in zip(cases, ran([("terminal", w) for w in cases]), strict=True):
        rest = OURS.sub("", shown.replace("\t", ""))
        assert rest.isprintable(), (words, shown)
        assert not [x for x in re.split(r"[\r\n]+", shown) if x == LINE.strip()], (words, shown)
        assert "Traceback" not in shown, (words, shown)
        seen += "HACKED" in shown
    assert seen >= len(cases) - 2  # the names are really shown


def hostile(home, mark, weights):
    """(what it is about, words of a command) with `mark` in every place that a message names."""

    def images(tree, bad=None, stray=None, kind="x"):
        for domain in ("d1", "d2"):
            for name in (kind, "y"):
                (home / tree / domain / name).mkdir(parents=True, exist_ok=True)
                for n in range(2):
                    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(
                        home / tree / domain / name / f"{n}.png"
                    )
        if bad:
            (home / tree / "d1" / "y" / bad).write_bytes(b"garbage")
        if stray:
            (home / tree / "d1" / "y" / stray).write_text("x")
        return home / tree

    home.mkdir()
    on = ("--model", weights, "--workers", 0, "--device", "cpu")
    bad = images("bad", bad=f"{mark}.png")
    yield "bad image", ["extract", "--dataset", bad, *on, "--out", home / "1.h5"]
    yield "skipped", ["extract", "--dataset", bad, *on, "--out", home / "2.h5",
                      "--on-bad-image", "skip"]  # fmt: skip
    stray = images("stray", stray=f"{mark}.txt")
    yield "stray file", ["extract", "--dataset", stray, *on, "--out", home / "3.h5"]
    named = images("named", kind=f"k{mark}")
    yield "class folder", ["extract", "--dataset", named, *on, "--out", home / "4.h5"]
    deep = images("deep")
    (deep / f"{mark}.d").mkdir()
    Image.new("RGB", (9, 9)).save(deep / f"{mark}.d" / "0.png")
    yield "two depths", ["extract", "--dataset", deep, *on, "--out", home / "5.h5"]
    root = home / "root"
    root.mkdir()
    with zipfile.ZipFile(root / "PACS.zip", "w") as archive:
        archive.writestr(f"PACS/photo/dog{mark}/1.jpg", b"x" * 100)
        archive.writestr("PACS/cartoon/dog/1.jpg", b"x" * 100)
    yield "archive member", ["download", "pacs", "--root", root]
    table = small()
    arrays = {"features": table.features, "labels": table.labels,
              "text_features": table.text_features}  # fmt: skip
    np.savez(home / "c.npz", class_names=np.array([mark, "b", "c", "d"]), **arrays)
    yield "class name of an npz", ["cache", "import", home / "c.npz", "--out", home / "6.h5"]
    np.savez(home / "k.npz", **{f"zz{mark}": np.zeros(1)})
    yield "key of an npz", ["cache", "import", home / "k.npz", "--out", home / "6.h5"]
    save_file({f"w{mark}": np.zeros(3, np.float32)}, home / "a.safetensors")
    yield "tensor", ["extract", "--model", home / "a.safetensors", "--out", home / "7.h5"]
    torch.save({f"w{mark}": torch.zeros(1)}, home / "w.pt")
    yield "tensor of torch", ["extract", "--model", home / "w.pt", "--out", home / "7.h5"]
    write_table(home / "s.h5", table)
    train = ("--rounds", 1, "--device", "cpu", "--backend", "torch")
    yield "run folder", ["federate", home / "s.h5", *train, "--out", home / mark]
    yield "start", ["federate", home / "s.h5", *train, "--init-adapter", home / "a.safetensors"]
    for number, text in enumerate((
        {"method": "grid", "parameters": {f"lr{mark}": {"value": 1}}},
        {"method": mark, "parameters": {"lr": {"value": 1}}},
        {"method": "grid", mark: 1, "parameters": {"lr": {"value": 1}}},
        {"method": "grid", "parameters": {"lr": {"value": mark}}},
        {"method": "grid", "parameters": {"mode": {"values": [mark]}}},
    )):  # fmt: skip
        spec = home / f"{number}.yaml"
        spec.write_text(json.dumps(text))
        yield "spec", ["sweep", home / "s.h5", "--spec", spec, "--out", home / "sweep"]
    yield "sweep's folder", ["sweep", home / "s.h5", *train, "--grid", "lr=1e-3",
                             "--out", home / f"sweep{mark}"]  # fmt: skip
    yield "facts of a cache", ["cache", "info", home / "s.h5"]
    run(table, home / "r", config(rounds=1), backend="torch")
    for name in ("done", "summary.json"):
        (home / "r" / name).unlink()
    described = json.loads((home / "r" / "config.json").read_text())
    described["settings"][f"lr{mark}"] = mark
    (home / "r" / "config.json").write_text(json.dumps(described))
    yield "config", ["federate", home / "s.h5", *train, "--out", home / "r"]
    yield "report", ["report", home / "r", "--out", home / f"{mark}.html"]


def test_an_error_of_the_system_names_its_file(monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device", f"/elsewhere/{MARK}")

    monkeypatch.setattr("pipeline.datasets.fetch.download_dataset", refuse)
    result = call("download", "pacs", code=1)
    assert re.fullmatch(r"Error: /elsewhere/.*HACKED.*: No space left on device\n", result.stderr)
    assert result.stderr[:-1].isprintable()
