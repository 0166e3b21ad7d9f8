"""Copies of an image in another domain, split or class."""

import numpy as np

from pipeline.datasets.doubts import copies
from pipeline.datasets.tree import image_digests, scan
from tests.cli.commands import call
from tests.datasets.folders import advised_words, fill, trees


def test_copies_in_another_domain_split_or_class_are_refused(tmp_path):
    root = fill(tmp_path / "mine", trees("art/train", "art/test", "real/train", "real/test"))
    inner = root / "art/train"
    for kind, target in (
        ("domain", root / "real/train/dog/9.jpg"),
        ("split", root / "art/test/dog/9.jpg"),
    ):
        target.write_bytes((inner / "dog/1.jpg").read_bytes())
        result = call("extract", "--dataset", root, "--dry-run", code=6)
        assert f"2 images have a copy in another {kind} (art/t" in result.stderr
        assert advised_words(result.stderr) == [["--accept", "duplicates"]]
        told = call("extract", "--dataset", root, "--dry-run", "--accept", "duplicates")
        assert f"in another {kind}" in told.stdout
        target.unlink()
    (inner / "dog/9.jpg").write_bytes((inner / "dog/1.jpg").read_bytes())  # where it is harmless
    (inner / "cat/9.jpg").write_bytes((inner / "dog/1.jpg").read_bytes())  # and is said
    for name in ("art/train/dog/e.jpg", "real/test/cat/e.jpg"):
        (root / name).touch()  # empty files are alike, and no images
    told = call("extract", "--dataset", root, "--dry-run")
    assert "3 images have a copy in another class" in told.stdout


def test_copies_equal_a_comparison_of_all_pairs(tmp_path):
    random = np.random.default_rng(0)
    root = fill(tmp_path / "mine", trees("art", "real", images="{1..4}.jpg"))
    files = sorted(root.rglob("*.jpg"))
    for _ in range(20):
        one, other = random.choice(len(files), 2, replace=False)
        files[one].write_bytes(files[other].read_bytes())
        tree = scan(root)
        content = [(root / path).read_bytes() for path in tree.paths]
        found = " ".join(doubt.what for doubt in copies(tree, image_digests(tree)))
        for level, values in (("domain", tree.domains), ("class", tree.labels)):
            groups = {
                c: [v for v, other in zip(values, content, strict=True) if other == c]
                for c in content
            }
            apart = sum(len(group) for group in groups.values() if len(set(group)) > 1)
            assert (f"{apart:,} images have a copy in another {level}" in found) == (apart > 0)
