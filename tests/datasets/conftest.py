"""What several tests of downloads share."""

import pytest

from tests.datasets.loopback import serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server
