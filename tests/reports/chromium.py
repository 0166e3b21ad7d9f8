"""A headless Chromium spoken to over its debugging pipe; needs no package."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
WATCHED = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


def find() -> str | None:
    """The first browser of NAMES that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page; a context manager that ends the process it started."""

    def __init__(self, profile: Path) -> None:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()

        def pipes() -> None:  # Chromium reads commands from 3 and answers on 4
            # Copied above 9 first: a dup2 onto 3 must not close the end that becomes 4.
            read = fcntl.fcntl(theirs_read, fcntl.F_DUPFD, 10)
            write = fcntl.fcntl(theirs_write, fcntl.F_DUPFD, 10)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [find(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self.read, self.write = ours_read, ours_write
        self.rest, self.numbers = b"", itertools.count(1)
        self.events: list[dict] = []
        self.session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self.read)
        os.close(self.write)

    def ask(self, method: str, **parameters: object) -> dict:
        """The result of one command of the DevTools protocol; events meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, file: Path, width: int, dark: bool = False) -> None:
        """Loads a file in a window of this width and waits until it is shown."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=file.resolve().as_uri())
        until = time.monotonic() + 30
        while self.run("document.readyState + location.href.slice(0, 5)") != "completefile:":
            assert time.monotonic() < until, f"{file} does not load"
            time.sleep(0.02)

    def run(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def complaints(self) -> list[dict]:
        """Console messages, uncaught errors and the policy's refusals since the page was opened."""
        return [event for event in self.events if event.get("method") in WATCHED]

    def requests(self) -> list[str]:
        """Addresses asked for since then, without those that are in the page itself."""
        asked = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in asked]

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _next(self) -> dict:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], 30)
            assert ready, "the browser does not answer"
            piece = os.read(self.read, 1 << 16)
            assert piece, "the browser ended"
            self.rest += piece
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)
