"""The garbage collector rests while packages load, and works as before afterwards."""

import contextlib
import gc

import pytest

from pipeline.imports import uncollected


@pytest.fixture(autouse=True)
def as_before():
    """Objects that a test froze are collected again."""
    collecting = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if collecting else gc.disable)()


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("failing", [True, False])
def test_the_collector_is_as_it_was_after_imports(collecting, failing):
    (gc.enable if collecting else gc.disable)()
    caught = pytest.raises(ImportError) if failing else contextlib.nullcontext()
    with caught, uncollected():
        assert not gc.isenabled()
        if failing:
            raise ImportError
    assert gc.isenabled() == collecting


def test_what_was_made_meanwhile_is_not_searched_again():
    with uncollected():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() >= len(kept)
    assert not any(found is kept for found in gc.get_objects())
