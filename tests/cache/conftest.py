"""What several tests of stores share."""

from pathlib import Path

import numpy as np
import pytest

from tests.cache import caches


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return caches.make(folder / "a.h5", caches.draw(5000, 4), split=np.zeros(5000, np.int8))
