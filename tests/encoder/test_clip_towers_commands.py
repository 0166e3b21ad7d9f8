"""--heads and --activation from extract's command line to predict's answers."""

import json

from cache.store import info
from tests.cli.commands import call
from tests.encoder import clips
from tests.extraction.extraction import draw_tree


def test_a_models_heads_and_activation_go_with_its_cache_and_run(tmp_path):
    draw_tree(tmp_path)
    file, cache = tmp_path / "small.pt", tmp_path / "c.h5"
    clips.save(clips.build(), file, "state dict")
    here = ("--dataset", tmp_path / "images", "--model", file, "--out", cache, "--workers", 0)
    gelu = ("--heads", "4,2", "--activation", "gelu")
    said = call("extract", *here).stderr
    assert "assumes QuickGELU and 64-wide attention heads (1 image, 1 text)" in said
    plain = info(cache)["identity"]["architecture"]
    assert "heads" not in json.dumps(plain) and "activation" not in plain
    assert "made with" in call("extract", *here, *gelu, code=3).stderr
    call("extract", *here, *gelu, "--force")
    made = info(cache)["identity"]["architecture"]
    assert (made["image"]["heads"], made["text"]["heads"], made["activation"]) == (4, 2, "gelu")
    assert "towers" in call("extract", *here, "--check", 3, code=3).stderr
    call("extract", *here, *gelu, "--check", 3)
    for option in ("--heads=4", "--activation=gelu"):
        assert "only one of the two" in call("federate", cache, option, code=1).stderr
    run = tmp_path / "run"
    call("federate", cache, "--rounds", 1, "--held-out", "none", "--out", run, "--device", "cpu")
    encoder = json.loads((run / "config.json").read_text())["cache"]["encoder"]
    assert encoder["towers"] == {"image_heads": 4, "text_heads": 2, "activation": "gelu"}
    picture = next((tmp_path / "images").rglob("*.*g"))
    (tmp_path / "config.json").write_text("{}")  # the run says what it needs
    answered = call("predict", picture, "--run", run, "--model", file, "--json", "--device", "cpu")
    assert "assumes" not in answered.stderr
    call("extract", "--heads", "4,x", code=2)
    call("extract", "--heads", "0", code=2)
