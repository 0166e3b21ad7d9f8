"""Every command that README, CONTRIBUTING and docs/ show, and what docs-check does with it."""

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.__main__ import bench
from pipeline.cli.app import cli
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BEGIN = r"(?:\./run\.sh|python -m|pip install)(?= |$)"
ASSIGNMENT = re.compile(r"([A-Z]+)=\"([^\"]*)\"")
WEIGHTS = "the built-in CLIP for OpenAI's 350 MB"
MINUTES = "takes minutes"
LAUNCHERS = {
    "torchrun": "needs several GPUs; tests/extraction/test_shard_words.py",
    "srun": "needs Slurm",
    "/usr/bin/time": MINUTES,
}


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it, variables of the page filled in."""

    page: str
    line: int
    text: str


@dataclass(frozen=True)
class Plan:
    """What is done with a command: run, as `words`, or parsed alone; `why` where it is not itself.

    words  None for a command that is not known here, which is a failure
    """

    words: list[str] | None
    run: bool = True
    why: str = ""


def shown_commands(page: Path) -> list[Shown]:
    """All of a page in its order: bash blocks, indented blocks and `inline` ones.

    In a bash block every line is a command. Elsewhere what begins like one is.
    """
    found, values, fenced, pending, first = [], {}, None, "", 0
    text = page.read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*```(\w*)", line)
        if mark:
            fenced = mark[1] if fenced is None else None
            continue
        if pending or fenced == "bash" or (fenced is None and line.startswith("    ")):
            first = first if pending else number
            pending += line.strip()
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            whole, pending = _without_comment(pending), ""
            if assigned := ASSIGNMENT.fullmatch(whole):
                values[assigned[1]] = _filled(assigned[2], values)
            elif whole and (fenced == "bash" or re.match(BEGIN, whole)):
                found.append(Shown(page.name, first, _filled(whole, values)))
    for inline in re.finditer(rf"`({BEGIN}[^`]*)`", re.sub(r"```.*?```", _blank, text, flags=re.S)):
        number = text.count("\n", 0, inline.start()) + 1
        found.append(Shown(page.name, number, _filled(" ".join(inline[1].split()), values)))
    return sorted(found, key=lambda one: one.line)


def plan(command: str) -> Plan:
    """How docs-check treats a command; a rule for each that cannot run as it stands."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "pipeline"]:
        return plan(shlex.join(["./run.sh", *words[3:]]))
    if words[0] in LAUNCHERS and "./run.sh" in words:
        own = plan(shlex.join(words[words.index("./run.sh") :]))
        return Plan(own.words, run=False, why=LAUNCHERS[words[0]])
    if "$SLURM" in command:
        return Plan(words, run=False, why="needs Slurm")
    if words[:2] in (["pip", "install"], ["python", "-m"]):
        why = "network" if words[0] == "pip" else "needs a GPU or packages of its own"
        return Plan(words, run=False, why=why)
    if words[0] == "ray" or "--ray" in words:
        return Plan(words, run=False, why="needs a Ray cluster; tests/cluster/test_ray.py")
    if words[0] in ("flwr", "setpriv"):
        return Plan(words, run=False, why="needs a SuperLink; tests/flower/test_flower_loopback.py")
    if words[0] != "./run.sh":
        return Plan(None)
    name = words[1] if len(words) > 1 else ""
    if name == "download":
        return Plan(words, run=False, why="network")
    if words[1:3] == ["cache", "import"] and "--force" not in words and "--help" not in words:
        return Plan([*words, "--force"], why="other commands need its cache before")
    if words[1:3] == ["cache", "merge"] and "*" in command:
        return Plan(words, run=False, why="needs all eight shards; docs/scale.md merges two")
    if name == "flower" and "--help" not in words:
        return Plan(
            words, run=False, why="needs several machines; tests/flower/test_flower_loopback.py"
        )
    if "--figures" in words and not importlib.util.find_spec("matplotlib"):
        return Plan(words, run=False, why="matplotlib is not installed (requirements-figures.txt)")
    if "--log-to" in words and not all(map(importlib.util.find_spec, ("tensorboard", "mlflow"))):
        return Plan(words, run=False, why="loggers are not installed (requirements-loggers.txt)")
    if name == "gpu-check":
        return Plan(words, run=False, why="needs a GPU; tests/test_gpu_check.py")
    if "--help" in words or name not in ("test", "check", "docs-check", "bench", *cli.commands):
        return Plan(words if name in ("", *cli.commands) or "--help" in words else None)
    if name in ("check", "docs-check") or (name == "bench" and "--readme" not in words):
        return Plan(words, run=False, why="needs a GPU" if "cuda" in words else MINUTES)
    if name == "test":
        short = ["./run.sh", "test", "tests/reports/test_svg.py"]
        return Plan(short, why="" if words == short else f"all tests: {MINUTES}")
    changed = [re.sub(r"(hf|open_clip):.+|ViT-B[-/]32", "demo", word) for word in words]
    if {"--dataset", "reproduce"} & set(words) and not {"--model", "demo"} & set(words):
        changed += ["--model", "demo"]
    return Plan(changed, why="" if changed == words else WEIGHTS)


def parse(command: str) -> None:
    """Parses a command as it would be on being run; nothing is run.

    Raises click.UsageError for words that the command does not take, ValueError for files and
    modules that are not there.
    """
    words = shlex.split(command)
    if words[0] in LAUNCHERS:
        words = words[words.index("./run.sh") :]
    if words[:2] == ["pip", "install"]:
        names = [words[at + 1] for at, word in enumerate(words) if word == "-r"]
    elif words[:2] == ["python", "-m"] and words[2] == "pytest":
        names = [word for word in words if word.endswith(".py")]
    elif words[:2] == ["python", "-m"]:
        if not importlib.util.find_spec(words[2]):
            raise ValueError(f"no module {words[2]}")
        names, words = [], ["./run.sh", {"benchmarks": "bench"}.get(words[2], ""), *words[3:]]
    else:
        names = [word for word in words[2:] if words[1] == "test" and word.endswith(".py")]
    for name in names:
        if not (ROOT / name).exists():
            raise ValueError(f"{name} is not there")
    if words[0] == "./run.sh" and len(words) > 1 and not {"--help", "-h"} & set(words):
        _parse_click({**cli.commands, "bench": bench}.get(words[1]), words[1], words[2:])


def _parse_click(command: click.Command | None, name: str, words: list[str]) -> None:
    while isinstance(command, click.Group) and words:
        name, *words = words
        if name not in command.commands:
            raise click.UsageError(f"no command {name}")
        command = command.commands[name]
    if command is not None:
        command.make_context(name, list(words))


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#.*$", "", line).strip()


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in sorted(values.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(f"${name}", value)
    return text


def _blank(block: re.Match) -> str:
    return re.sub(r"[^\n]", " ", block[0])
