"""A server on this machine that drops, lies and changes, and what its tests share."""

import contextlib
import http.server
import random
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
import zipfile

from pipeline.transfer.connection import Patience
from tests.conftest import ROOT

HASTY = Patience(seconds=10.0, bytes_per_second=1000.0, retries=4, pause=0.01)
DATA = random.Random(0).randbytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path, in the ways the tests set here."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.modified = DATA, '"one"', None
        self.ranges, self.heeds_if_range = True, True
        self.drops = []  # bytes of body after which the next connections end
        self.declared = None  # a Content-Length other than the true one; "none" for no such header
        self.shifts = []  # how far off the next answers to a Range begin
        self.status, self.kind = 200, "application/zip"
        self.block, self.pause = 1 << 16, 0.0
        self.asked = []  # (Range, If-Range) of each request

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/PACS.zip"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what these tests are about


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        s = self.server
        span, condition = self.headers["Range"], self.headers["If-Range"]
        s.asked.append((span, condition))
        start, body = 0, s.content
        if span and s.ranges and (not s.heeds_if_range or condition in (s.etag, s.modified)):
            start = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
            start += s.shifts.pop(0) if s.shifts else 0
            body = body[start:]
            self.send_response(206 if body else 416)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(s.content) - 1}/{len(s.content)}"
            )
        else:
            self.send_response(s.status)
        if s.declared != "none":
            self.send_header("Content-Length", str(s.declared or len(body)))
        self.send_header("Content-Type", s.kind)
        for name, value in (("ETag", s.etag), ("Last-Modified", s.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = s.drops.pop(0) if s.drops else len(body)
        for at in range(0, min(end, len(body)), s.block):
            self.wfile.write(body[at : min(at + s.block, end)])
            self.wfile.flush()
            time.sleep(s.pause)


@contextlib.contextmanager
def answering(server):
    """A server that answers while the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serving():
    return answering(Server())


def left(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def start_killable(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def kill(process):
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            # The constructor would mend some of the names.
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return path


class Raw(socketserver.ThreadingTCPServer):
    """Answers each request with the bytes that `reply(number, request)` yields, then hangs up."""

    allow_reuse_address = daemon_threads = True
    block_on_close = False  # an endless reply ends when its client hangs up, or with the test

    def __init__(self, reply, context=None):
        super().__init__(("127.0.0.1", 0), RawHandler)
        self.reply, self.context, self.asked, self.sent = reply, context, [], 0

    @property
    def url(self):
        kind = "https" if self.context else "http"
        return f"{kind}://127.0.0.1:{self.server_address[1]}/PACS.zip"

    def get_request(self):
        connection, address = super().get_request()
        if self.context:
            connection = self.context.wrap_socket(connection, server_side=True)
        return connection, address

    def handle_error(self, request, client_address):
        pass


class RawHandler(socketserver.StreamRequestHandler):
    def handle(self):
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            request += line
        self.server.asked.append(request.decode())
        for part in self.server.reply(len(self.server.asked) - 1, request.decode()):
            self.wfile.write(part)
            self.wfile.flush()
            self.server.sent += len(part)


def replying(reply, context=None):
    return answering(Raw(reply, context))


def head(status="200 OK", **headers):
    """An answer's first lines; a header of several values is there several times."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/zip", "Connection: close"]
    for name, values in headers.items():
        for value in values if isinstance(values, list) else [values]:
            lines.append(f"{name.replace('_', '-')}: {value}")
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(content):
    return b"%x\r\n%s\r\n" % (len(content), content)
