"""Features exported for other tools, and both commands."""

import numpy as np
import pytest

from cache.store import read_table
from cache.table import CacheError
from pipeline.features.write import FORMS, write_features
from tests.cli.commands import call, refused
from tests.features.parts import PARTS, expected, named, read


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", [None, np.repeat([0, 1, 2], [20, 8, 12])])
def test_what_is_exported_is_imported_again(form, split, tmp_path):
    table = expected(**({} if split is None else {"split": split}), model=np.array("ViT-B/32"))
    out = write_features(table, tmp_path / f"a{form}")
    assert read(out)[0].fingerprint == table.fingerprint
    with pytest.raises(CacheError, match="--force"):
        write_features(table, tmp_path / f"a{form}")
    write_features(table, tmp_path / f"a{form}", force=True)
    with pytest.raises(CacheError, match="written as .xyz"):
        write_features(table, tmp_path / "a.xyz")


def test_the_commands(tmp_path):
    np.save(tmp_path / "f.npy", PARTS["features"])
    np.save(tmp_path / "y.npy", PARTS["labels"] + 1)
    named(tmp_path)
    words = ("cache", "import", tmp_path / "f.npy", "--out", tmp_path / "c.h5",
             "--labels", tmp_path / "y.npy", "--class-names", tmp_path / "n_a_m_e_s.txt",
             "--text-features", tmp_path / "t_e_x_t.npy", "--dataset-name", "x")  # fmt: skip
    refused(*words, code=4, match="--labels-from 1")
    call(*words, "--labels-from", 1)
    assert read_table(tmp_path / "c.h5").fingerprint == expected().fingerprint
    call("cache", "export", tmp_path / "c.h5", "--out", tmp_path / "again.pt")
    call("cache", "import", tmp_path / "again.pt", "--out", tmp_path / "d.h5")
    assert read_table(tmp_path / "d.h5").fingerprint == expected().fingerprint
    refused("cache", "import", tmp_path / "f.npy", "--key", "features", code=2, match="KEY=NAME")
    refused("cache", "import", tmp_path / "c.h5", "--out", tmp_path / "e.h5", code=4, match="c.h5")
