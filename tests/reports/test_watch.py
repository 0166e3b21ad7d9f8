"""report --watch: the page is written again while a run trains, and reloads itself until then."""

import threading
import time

from pipeline.cli import report
from tests.cli.commands import call
from tests.reports.report_folders import made_run
from tests.reports.report_pages import harmless


def test_the_page_reloads_until_the_run_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SOON", 0.05)
    monkeypatch.setattr(report, "SHARE", 0)
    run = made_run(tmp_path / "run", 3, 4, 2)
    (run / "done").unlink()
    page = tmp_path / "r.html"
    thread = threading.Thread(target=report._watch, args=((run,), page, None, None), daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not page.exists() and time.monotonic() < until:
        time.sleep(0.02)
    first = page.read_bytes()
    assert b'http-equiv="refresh"' in first and thread.is_alive()
    harmless(first)
    with (run / "rounds.jsonl").open("a") as log:
        log.write('{"round":')  # a line that is being written
    time.sleep(0.3)
    assert thread.is_alive()
    (run / "done").touch()
    thread.join(60)
    assert not thread.is_alive()
    made_run(run, 3, 4, 2)  # the line that was begun is gone
    call("report", run, "--watch", "--out", page)
    assert b'http-equiv="refresh"' not in page.read_bytes()
