"""--heads and --activation from extract's command line to predict's answers."""

import json

from click.testing import CliRunner

from cache.store import info
from pipeline.cli.app import cli
from tests.encoder import clips
from tests.extraction.extraction import draw_tree


def ran(*words: object, code: int = 0):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def test_a_models_heads_and_activation_go_with_its_cache_and_run(tmp_path):
    draw_tree(tmp_path)
    file, cache = tmp_path / "small.pt", tmp_path / "c.h5"
    clips.save(clips.build(), file, "state dict")
    here = ("--dataset", tmp_path / "images", "--model", file, "--out", cache, "--workers", 0)
    gelu = ("--heads", "4,2", "--activation", "gelu")
    said = ran("extract", *here).stderr
    assert "assumes QuickGELU and 64-wide attention heads (1 image, 1 text)" in said
    plain = info(cache)["identity"]["architecture"]
    assert "heads" not in json.dumps(plain) and "activation" not in plain
    assert "made with" in ran("extract", *here, *gelu, code=3).stderr
    ran("extract", *here, *gelu, "--force")
    made = info(cache)["identity"]["architecture"]
    assert (made["image"]["heads"], made["text"]["heads"], made["activation"]) == (4, 2, "gelu")
    assert "towers" in ran("extract", *here, "--check", 3, code=3).stderr
    ran("extract", *here, *gelu, "--check", 3)
    for option in ("--heads=4", "--activation=gelu"):
        assert "only one of the two" in ran("federate", cache, option, code=1).stderr
    run = tmp_path / "run"
    ran("federate", cache, "--rounds", 1, "--held-out", "none", "--out", run, "--device", "cpu")
    encoder = json.loads((run / "config.json").read_text())["cache"]["encoder"]
    assert encoder["towers"] == {"image_heads": 4, "text_heads": 2, "activation": "gelu"}
    picture = next((tmp_path / "images").rglob("*.*g"))
    (tmp_path / "config.json").write_text("{}")  # the run says what it needs
    answered = ran("predict", picture, "--run", run, "--model", file, "--json", "--device", "cpu")
    assert "assumes" not in answered.stderr
    ran("extract", "--heads", "4,x", code=2)
    ran("extract", "--heads", "0", code=2)
