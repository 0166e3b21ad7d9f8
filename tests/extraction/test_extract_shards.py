"""Extraction in shards: merged, they equal the file of one piece; mismatches are named."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from cache.store import info, merge_shards, partial_of, read_table, shard_rows, verify
from cache.table import CacheError, StaleCache
from pipeline.errors import DataError
from pipeline.extraction import rows as encode_rows
from pipeline.extraction.shards import merge
from tests.cache import caches
from tests.conftest import NEEDS_PROC, logged
from tests.encoder import clips
from tests.extraction.extraction import run, spoil
from tests.processes import python


def cut(tree, weights, out, count, only=None, **settings) -> list[Path]:
    """The shards of out."""
    numbers = only or range(1, count + 1)
    reports = [run(tree, weights, out, shard=f"{i}/{count}", **settings)[0] for i in numbers]
    return [report.path for report in reports]


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (23, 1), (23, 2), (23, 5), (9991, 16)])
def test_every_row_is_in_one_shard_and_no_batch_is_cut(rows, batch):
    blocks = -(-rows // batch)
    for count in {1, 2, 3, 7, blocks} & set(range(blocks + 1)):
        parts = [shard_rows(rows, batch, index, count) for index in range(1, count + 1)]
        assert [row for part in parts for row in part] == list(range(rows))
        assert all(part.start % batch == 0 for part in parts)
        sizes = [-(-len(part) // batch) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0


@pytest.mark.parametrize(
    ("count", "batch", "store"), [(2, 5, "fp16"), (3, 2, "fp32"), (12, 2, "fp16")]
)
def test_merged_shards_are_the_file_of_one_piece(tree, weights, tmp_path, count, batch, store):
    spoil(tree)
    settings = {"batch": batch, "store": store, "on_bad_image": "skip"}
    run(tree, weights, tmp_path / "whole.h5", **settings)
    files = cut(tree, weights, tmp_path / "x.h5", count, **settings)
    assert files[1] == tmp_path / f"x.shard-2-of-{count}.h5"
    for file in files:
        verify(file)
        assert info(file)["shard"] == file.stem.split("shard-")[1].replace("-of-", "/")
    merged = merge_shards(reversed(files))
    assert merged == tmp_path / "x.h5"
    assert merged.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    again, _ = run(tree, weights, merged, **settings)  # its identity is that of these images
    assert again.encoded == 0


def test_a_shard_of_bad_images_only_merges_as_well(tree, weights, tmp_path):
    for image in sorted((tree / "art" / "cat").iterdir())[:2]:
        image.write_bytes(b"no image")
    settings = {"batch": 2, "on_bad_image": "skip"}
    run(tree, weights, tmp_path / "whole.h5", **settings)
    files = cut(tree, weights, tmp_path / "x.h5", 12, **settings)
    verify(files[0])
    assert info(files[0])["unreadable"] == info(files[0])["rows"] == 2
    assert merge_shards(files).read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_bad_image_ends_its_shard_alone(tree, weights, tmp_path):
    spoil(tree)
    with pytest.raises(DataError, match="on-bad-image skip"):
        run(tree, weights, tmp_path / "x.h5", shard="1/2", batch=2)
    assert partial_of(tmp_path / "x.shard-1-of-2.h5").exists()


def test_a_killed_shard_goes_on_and_two_write_in_one_folder(tree, weights, tmp_path, monkeypatch):
    whole = tmp_path / "whole.h5"
    run(tree, weights, whole, batch=2)
    plain, calls = encode_rows.encode_images, []

    def encode(clip, pixels):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(clip, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(encode_rows, "encode_images", encode)
        with pytest.raises(KeyboardInterrupt):
            cut(tree, weights, tmp_path / "x.h5", 2, [1], batch=2)
    begun = info(tmp_path / "x.shard-1-of-2.h5.partial")
    assert 0 < begun["rows_done"] < begun["rows"]
    reports = {}

    def one(index: int) -> None:
        reports[index] = run(tree, weights, tmp_path / "x.h5", shard=f"{index}/2", batch=2)[0]

    both = [threading.Thread(target=one, args=(index,)) for index in (1, 2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert reports[1].resumed == begun["rows_done"] and reports[2].resumed == 0
    files = [reports[index].path for index in (1, 2)]
    assert merge_shards(files).read_bytes() == whole.read_bytes()
    with pytest.raises(StaleCache, match="shard.batch = 2, asked for 3"):
        cut(tree, weights, tmp_path / "x.h5", 2, [1], batch=3)


def test_what_does_not_make_a_whole_is_named(tree, weights, tmp_path):
    files = cut(tree, weights, tmp_path / "x.h5", 4, batch=2)
    out = tmp_path / "out.h5"
    for given, words in (
        (files[:1] + files[2:], "of 4 shards 1 are missing: 2/4"),
        (files[:1], "3 are missing: 2/4, 3/4, 4/4"),
        ([*files, files[2]], "are both shard 3/4"),
        ([*files[:3], tmp_path / "x.shard-9-of-9.h5"], "no such file"),
        ([], "no shard"),
    ):
        with pytest.raises(CacheError, match=words) as caught:
            merge_shards(given, out)
        assert type(caught.value) is CacheError and caught.value.exit_code == 4
        assert "\n" not in str(caught.value) and not list(tmp_path.glob("out.h5*"))
    files[1].rename(partial_of(files[1]))
    with pytest.raises(CacheError, match=r"2/4 \(.*x.shard-2-of-4.h5.partial is unfinished\)"):
        merge_shards(files[:1] + files[2:], out)


def test_shards_of_two_extractions_are_unlike(tree, weights, tmp_path):
    first = cut(tree, weights, tmp_path / "x.h5", 2, [1], batch=2)
    other = clips.save(clips.build(seed=1), tmp_path / "other.safetensors", "safetensors")
    for name, model, settings, field in (
        ("batch", weights, {"batch": 3}, "shard.batch"),
        ("model", other, {"batch": 2}, "weights_sha256"),
        ("store", weights, {"batch": 2, "store": "fp32"}, "store_dtype"),
        ("prompt", weights, {"batch": 2, "templates": ("a {}",)}, "templates.0"),
        ("more", weights, {"batch": 2}, "shard.rows = 24, asked for 23"),
    ):
        if name == "more":
            shutil.copy(tree / "art/cat/00.png", tree / "photo" / "dog" / "new.png")
        second = cut(tree, model, tmp_path / f"{name}.h5", 2, [2], **settings)
        with pytest.raises(StaleCache, match=field) as caught:
            merge_shards(first + second, tmp_path / "out.h5")
        assert caught.value.exit_code == 3 and "x.shard-1-of-2.h5" in str(caught.value)
    assert not (tmp_path / "out.h5").exists()


def test_another_list_of_as_many_images_is_unlike(tree, weights, tmp_path):
    first = cut(tree, weights, tmp_path / "x.h5", 2, [1], batch=2)
    last = sorted((tree / "photo" / "dog").iterdir())[-1]
    last.rename(last.with_name("zz.png"))
    second = cut(tree, weights, tmp_path / "x.h5", 2, [2], batch=2)
    with pytest.raises(StaleCache, match="shard.paths_sha256"):
        merge_shards(first + second)


def test_any_damage_of_a_shard_is_found_and_the_next_merge_goes_on(tree, weights, tmp_path):
    files = cut(tree, weights, tmp_path / "x.h5", 2, batch=2)
    whole, sound = merge_shards(files, tmp_path / "whole.h5"), files[1].read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(sound), 60).tolist() + [len(sound) - 1]:
        spoiled = bytearray(sound)
        spoiled[place] ^= 1 << int(draw.integers(8))
        files[1].write_bytes(spoiled)
        with pytest.raises(CacheError):
            merge_shards(files, tmp_path / "out.h5")
        assert not (tmp_path / "out.h5").exists()
    files[1].write_bytes(sound)
    assert merge_shards(files, tmp_path / "out.h5").read_bytes() == whole.read_bytes()
    with pytest.raises(CacheError, match="out.h5 exists"):
        merge_shards(files, tmp_path / "out.h5")
    merge_shards(files, tmp_path / "out.h5", force=True)


def test_a_shard_is_not_trained_on_and_a_whole_is_not_merged(tree, weights, tmp_path):
    (file,) = cut(tree, weights, tmp_path / "x.h5", 3, [2], batch=2)
    with pytest.raises(CacheError, match=r"is shard 2/3 .* cache merge") as caught:
        read_table(file)
    assert caught.value.exit_code == 4
    whole = caches.make(tmp_path / "whole.h5", caches.draw())
    with pytest.raises(CacheError, match="in one piece"):
        merge_shards([whole])


FORGED = {
    "no dict": 5,
    "no such count": {"index": 3, "count": 2, "rows": 50, "batch": 5},
    "text": {"index": "1", "count": 2, "rows": 50, "batch": 5},
    "huge": {"index": 1, "count": 2, "rows": 1 << 80, "batch": 5},
    "batch 0": {"index": 1, "count": 2, "rows": 50, "batch": 0},
    "other rows": {"index": 1, "count": 2, "rows": 40, "batch": 5},
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_facts_are_refused(tmp_path, name):
    drawn, facts = caches.draw(), FORGED[name]
    if isinstance(facts, dict):
        facts = facts | {"paths_sha256": "00", "manifest_sha256": "00"}
    digests = np.zeros((50, 40), np.uint8)
    identity = drawn["identity"] | {"shard": facts}
    file = caches.make(tmp_path / "x.h5", drawn, identity=identity, image_digests=digests)
    with pytest.raises(CacheError, match="is invalid"):
        merge_shards([file])
    with pytest.raises(CacheError, match="cache merge"):
        read_table(file)
    info(file)


def test_digests_belong_to_shards_and_shards_have_them(tmp_path):
    drawn = caches.draw()
    for name, changes in (
        ("a", {"image_digests": np.zeros((50, 40), np.uint8)}),
        ("b", {"identity": drawn["identity"] | {"shard": {}}}),
    ):
        with pytest.raises(CacheError, match="image_digests"):
            caches.make(tmp_path / f"{name}.h5", drawn, **changes)


@NEEDS_PROC
def test_merging_takes_a_bounded_memory(tmp_path):
    """60 MB of features: what a shard of 30,000 rows takes of them is a block of 4,096."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from cache.identity import manifest_sha256
from cache.store import merge_shards, no_features, open_writer, shard_identity
from cache.table import FeatureTable
rows, files = 60_000, []
paths = [f"a/b/{number:05}.png" for number in range(rows)]
for index in (1, 2):
    half = range((index - 1) * 30_000, index * 30_000)
    digests = np.full((30_000, 40), 7, np.uint8)
    own = [paths[row] for row in half]
    whole = {"manifest_sha256": manifest_sha256(own, digests)}
    file = Path(sys.argv[1]) / f"x.shard-{index}-of-2.h5"
    table = FeatureTable(
        source="", features=no_features(30_000, 512, "float16"), labels=np.zeros(30_000, int),
        domains=np.zeros(30_000, int), text_features=np.ones((1, 512), np.float32),
        logit_scale=100.0, class_names=("b",), domain_names=("a",), split=None,
        identity=shard_identity(whole, paths, index=index, count=2, batch=16),
    )
    with open_writer(file, table, paths=own, image_digests=digests) as writer:
        for start in range(0, 30_000, 4096):
            some = np.arange(start, min(start + 4096, 30_000))
            writer.put(some, np.ones((len(some), 512), np.float16), np.ones(len(some)))
        writer.publish()
    files.append(file)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
merge_shards(files)
print(peak() - before)
"""
    taken = int(python(script, tmp_path))
    assert (tmp_path / "x.h5").stat().st_size > 61_000_000
    assert taken < 30 << 10  # KiB


@pytest.mark.parametrize("levels", [("art", "photo"), ("train/art", "test/art")])
def test_a_copy_in_another_shard_is_found_on_merging(tree, weights, tmp_path, levels):
    """No shard has both images; extracted in one piece, the whole is refused for them."""
    if levels[0] == "train/art":
        (tree.parent / "new" / "train").mkdir(parents=True)
        (tree.parent / "new" / "test").mkdir()
        (tree / "art").rename(tree.parent / "new" / "train" / "art")
        (tree / "photo").rename(tree.parent / "new" / "test" / "art")
        tree = tree.parent / "new"
    one = sorted((tree / levels[0] / "cat").iterdir())[0]
    shutil.copy(one, tree / levels[1] / "cat" / f"copy{one.suffix}")
    settings = {"batch": 12}
    with pytest.raises(DataError, match="2 images have a copy in another") as whole:
        run(tree, weights, tmp_path / "whole.h5", **settings)
    files = cut(tree, weights, tmp_path / "x.h5", 2, **settings)
    with pytest.raises(DataError, match="2 images have a copy in another") as caught:
        merge(files, None)
    assert "--accept duplicates" in str(caught.value) and f"copy{one.suffix}" in str(caught.value)
    assert whole.value.exit_code == caught.value.exit_code
    assert not (tmp_path / "x.h5").exists() and not partial_of(tmp_path / "x.h5").exists()
    with logged() as said:
        merged = merge(files, None, accept=("duplicates",))
    assert any("have a copy" in line for line in said)
    run(tree, weights, tmp_path / "whole.h5", accept=("duplicates",), **settings)
    assert merged.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_copies_in_a_known_data_set_are_said_and_merged(tree, weights, tmp_path):
    one = sorted((tree / "art" / "cat").iterdir())[0]
    shutil.copy(one, tree / "photo" / "cat" / f"copy{one.suffix}")
    tree = tree.rename(tree.with_name("pacs"))
    files = cut(tree, weights, tmp_path / "x.h5", 2, batch=12)
    with logged() as said:
        merge(files, None)
    assert any("have a copy in another domain" in line for line in said)
