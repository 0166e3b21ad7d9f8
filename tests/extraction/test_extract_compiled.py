"""extract --compile: the features of the plain encoder, in a cache that says so."""

import numpy as np
import pytest
import torch

from cache.store import info, read_table
from cache.table import StaleCache
from pipeline.errors import ConfigError
from pipeline.extraction.extract import extract

# torch's own, when its compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")


def test_compiled_features_are_the_plain_ones_in_a_cache_of_their_own(tree, weights, tmp_path):
    made = {}
    for compiled in (False, True):
        out = tmp_path / f"{compiled}.h5"
        extract(tree, model=weights, out=out, device="cpu", batch=5, workers=0, store="fp32",
                compile=compiled)  # fmt: skip
        made[compiled] = read_table(out), info(out)["identity"]
    (plain, own), (found, other) = made[False], made[True]
    assert len(found.features) % 5 and len(found.features) > 5  # the last block is padded
    np.testing.assert_allclose(found.features, plain.features, rtol=1e-4, atol=1e-5)
    assert other["compute"].pop("compiled") is True and own == other
    with pytest.raises(StaleCache, match="compute"):
        extract(tree, model=weights, out=tmp_path / "True.h5", device="cpu", workers=0,
                store="fp32")  # fmt: skip


def test_a_machine_that_cannot_compile_is_told_so(tree, weights, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def compiled(module, **_):
        def forward(*_):
            raise InvalidCxxCompiler

        module.forward = forward
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ConfigError, match="--compile: torch cannot compile small.*: No working C"):
        extract(tree, model=weights, out=tmp_path / "x.h5", device="cpu", workers=0, compile=True)
