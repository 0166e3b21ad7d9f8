"""Fixtures every test file may use."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each CPU: with more threads each, those that wait spin on the others' CPUs.
    # federation/test_closed_form_method.py on a busy machine: 81 s of CPU with two, 24 with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Helpers beside the tests say what they compared, as tests do.
FOLDERS = {f"tests.{each.parent.name}" for each in Path(__file__).parent.glob("*/__init__.py")}
pytest.register_assert_rewrite(*FOLDERS - {*sys.modules})

# By the clock a test fails where other programs run beside it.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device: for GPUs"),
]


def on_posix(why: str) -> pytest.MarkDecorator:
    """Leaves a test out on Windows, for what it does and Windows has not."""
    return pytest.mark.skipif(os.name != "posix", reason=f"{why}: for Linux and macOS")


def on_linux(why: str) -> pytest.MarkDecorator:
    """Leaves a test out on other systems, for what it does and they have not."""
    return pytest.mark.skipif(sys.platform != "linux", reason=f"{why}: for Linux")


NEEDS_PROC = on_linux("looks at processes in /proc")
MEASURES_PEAKS = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="resets a process's peak of memory in /proc/self/clear_refs: for Linux",
)


@contextlib.contextmanager
def logged(level: int = logging.INFO) -> Iterator[list[str]]:
    """The messages that our loggers log while the context is open, as they are logged."""
    from pipeline.terminal import LOGGERS

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield messages
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What our loggers log during a test, a message each."""
    with logged() as messages:
        yield messages


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of third-party data; FEDCLIP_SHARED names it, and then it must be there."""
    named = os.environ.get("FEDCLIP_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not folder.is_absolute():
        folder = ROOT / folder
    if not (folder / "data").is_dir():
        if named:
            pytest.fail(f"FEDCLIP_SHARED={named}: there is no {folder / 'data'}")
        pytest.skip(f"no shared data at {folder}; set FEDCLIP_SHARED to the folder that has it")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The file of a small random CLIP."""
    from tests.encoder import clips

    folder = tmp_path_factory.mktemp("clip")
    return clips.save(clips.build(), folder / "small.safetensors", "safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of images, two small CLIPs and a run of each kind (tests/runs/predictions.py)."""
    from tests.runs.predictions import make_runs

    return make_runs(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def table(tmp_path):
    """The small table of tests/runs/small_runs.py, read from a cache file."""
    from tests.runs.small_runs import stored

    return stored(tmp_path)


@pytest.fixture
def one_thread():
    """One thread of torch, whose others would only wait for each other on small data."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A folder of 23 images in two domains of two classes."""
    from tests.extraction.extraction import draw_tree

    return draw_tree(tmp_path)


def pytest_collection_modifyitems(items):
    """Refuses parameters without values, and names that differ from process to process.

    pytest skips the first everywhere; tests side by side must agree on the second.
    """
    marks = [(item.nodeid, mark) for item in items for mark in item.iter_markers("skip")]
    empty = [name for name, mark in marks if "empty parameter set" in mark.kwargs.get("reason", "")]
    if empty:
        raise pytest.UsageError(f"a test's parameter has no values: {empty[0]}")
    odd = [item.nodeid[:300] for item in items if " at 0x" in item.nodeid]
    if odd:
        raise pytest.UsageError(f"a test's name holds an address; give it ids: {odd[0]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Captured logs may hold lone surrogates, which tests side by side cannot send each other."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
