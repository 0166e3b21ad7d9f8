"""Flower's programs as processes of their own: started with a log each, and killed in the end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from pipeline.flower.programs import environment
from pipeline.runs.folder import read_adapters
from tests.conftest import ROOT

PATIENCE = 900  # seconds for what takes 25 on two idle cores
OURS = [sys.executable, "-m", "pipeline", "flower"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Programs:
    """Programs, each with a log, a FLWR_HOME of its own and a process group to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: dict[str, subprocess.Popen] = {}

    def env(self, name: str) -> dict[str, str]:
        home, often = str(self.folder / f"home-{name}"), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
        own = {**environment(), "FLWR_HOME": home, often: "0.5"}
        del own["PYTHONSAFEPATH"]  # `python -m pipeline` is found in the current folder
        return own

    def start(self, name: str, *command: str) -> None:
        with self.log(name).open("wb") as log:
            self.programs[name] = subprocess.Popen(
                command, env=self.env(name), cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def run(self, name: str, *command: str) -> tuple[int, str]:
        """The exit code of a program that ends by itself, and what it printed."""
        self.start(name, *command)
        return self.ended(name)

    def ended(self, name: str) -> tuple[int, str]:
        try:
            code = self.programs.pop(name).wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end\n{self.logs()}") from None
        return code, self.said(name)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text("utf-8", "replace")

    def wait(self, name: str, text: str, times: int = 1) -> None:
        end = time.monotonic() + PATIENCE
        while self.said(name).count(text) < times:
            going = self.programs[name].poll() is None and time.monotonic() < end
            assert going, f"{name} never said {text!r}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(
            f"== {log.stem}\n{self.said(log.stem)[-3000:]}" for log in self.folder.glob("*.log")
        )

    def kill(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.programs[name].pid, signal.SIGKILL)
        self.programs.pop(name).wait()

    def end(self, patience: float = 20) -> list[int]:
        """Kills all that runs; what still ran `patience` seconds after what had started it."""
        for name in reversed([*self.programs]):
            self.kill(name)
        end = time.monotonic() + patience  # a SuperExec sees within seconds that its parent is gone
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return left

    def left(self) -> list[int]:
        """Processes of these programs: those whose FLWR_HOME lies in their folder."""
        mark, found = f"FLWR_HOME={self.folder}/".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found


def same_adapters(ours: Path, theirs: Path) -> dict:
    """Holds the adapters of two run folders equal to float32 rounding; the facts of the first.

    Without what a run of one process remembers of its clients' optimizers: sites keep that.
    """
    (comp, told), (ref, facts) = (
        read_adapters(folder / "adapter.safetensors") for folder in (ours, theirs)
    )
    assert told["chosen"] == facts["chosen"]
    names = [name for name in ref if not name.startswith("state.")]
    assert names == [name for name in comp if not name.startswith("state.")]
    for name in names:
        torch.testing.assert_close(comp[name], ref[name], rtol=1e-6, atol=1e-7)
    return told
