"""A data set is fetched once, unpacked, found and counted, and every difference is said."""

import dataclasses
import io
import json
import re
import shlex
import zipfile
from pathlib import Path

import pytest

from pipeline.datasets import fetch
from pipeline.datasets import known as domains
from pipeline.datasets.counts import KNOWN
from pipeline.datasets.fetch import download_dataset
from pipeline.errors import DataError
from pipeline.transfer.download import download
from tests.cli.commands import call
from tests.datasets.loopback import left, zipped
from tests.extraction.extraction import Said
from tests.packages import need


@pytest.fixture(autouse=True)
def small_pacs(monkeypatch):
    """PACS with a twentieth of its images; the real counts are tested with the counts."""
    known = KNOWN["pacs"]
    counts = {key: number // 20 for key, number in known.counts.items()}
    rows = {d: (sum(n for (e, _), n in counts.items() if e == d),) for d in known.domain_names}
    small = dataclasses.replace(known, counts=counts, rows=rows)
    monkeypatch.setitem(KNOWN, "pacs", small)
    return sum(counts.values())


def pacs_zip(top="PACS/kfold/", without=(), extra=()):
    known = KNOWN["pacs"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for (domain, name), number in known.counts.items():
            for i in range(number):
                path = f"{domain}/{name}/pic_{i:03d}.jpg"
                if path not in without:
                    archive.writestr(top + path, b"")
        for path in extra:
            archive.writestr(top + path, b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("top", "place"), [("", ""), ("PACS/kfold/", "kfold"), ("data/pacs/", "data/pacs")]
)
def test_pacs_is_fetched_once_and_counted(server, tmp_path, small_pacs, top, place):
    server.content = pacs_zip(top, extra=("Thumbs.db",))
    server.drops = [10_000] if not top else []
    said = Said()
    found = download_dataset("PACS", tmp_path / "data", server.url, said)
    assert found == tmp_path / "data" / "PACS" / place
    assert f"PACS: {small_pacs} images, 4 domains, 7 classes, as published" in said
    assert said[-1] == f"next: ./run.sh extract --dataset pacs --root {tmp_path / 'data'}"
    asked = len(server.asked)
    again = Said()
    assert download_dataset("pacs", tmp_path / "data", server.url, again) == found
    assert len(server.asked) == asked and "nothing is downloaded" in again[0]
    assert again[-1] == said[-1]


def test_the_default_root_needs_no_word(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(domains, "DATA", tmp_path / "data")
    server.content = pacs_zip()
    said = Said()
    download_dataset("pacs", Path("data"), server.url, said)
    assert said[-1] == "next: ./run.sh extract --dataset pacs"


def test_wrong_counts_are_said_and_the_files_kept(server, tmp_path):
    server.content = pacs_zip(
        without=("photo/dog/pic_007.jpg",), extra=("sketch/house/more.png", "photo/cat/1.jpg")
    )
    said = Said()
    for _ in range(2):
        with pytest.raises(DataError, match="in 3 counts.*the files are kept") as caught:
            download_dataset("pacs", tmp_path, server.url, said)
        assert "photo/dog: 8 images, 1 short of the 9 published" in said
        assert "sketch/house: 5 images, 1 more than the 4 published" in said
        assert "cat: not a class of PACS (1 images)" in said
    advised = re.search(r"run \./run\.sh (extract .*)", str(caught.value))[1]
    call(*shlex.split(advised), "--dry-run")
    assert (tmp_path / "PACS/kfold/photo/cat/1.jpg").exists() and len(server.asked) == 1


def test_a_damaged_archive_is_not_kept(server, tmp_path):
    """What is published is taken as it is from then on: a damaged one would be in the way."""
    sound = pacs_zip()
    server.content = sound[:5_000] + b"\xff" * 8 + sound[5_008:]
    for _ in range(2):
        with pytest.raises(DataError, match="PACS.zip.part.* (not a valid zip|its member)"):
            download_dataset("pacs", tmp_path, server.url, Said())
        assert not (tmp_path / "PACS.zip").exists() and not (tmp_path / "PACS").exists()
    server.content = sound
    download_dataset("pacs", tmp_path, server.url, Said())
    assert (tmp_path / "PACS/kfold/sketch").is_dir()


def test_an_archive_is_no_larger_than_its_images_can_be(server, tmp_path, small_pacs):
    server.content, server.declared = b"", (small_pacs << 20) + 1
    with pytest.raises(DataError, match=f"over the {small_pacs << 20:,} that this file may have"):
        download_dataset("pacs", tmp_path, server.url, Said())
    assert len(server.asked) == 1 and not (tmp_path / "PACS.zip").exists()


def test_an_archive_of_something_else_is_told(server, tmp_path):
    server.content = zipped(tmp_path / "other.zip", [("mnist/0/1.png", b"")]).read_bytes()
    with pytest.raises(DataError, match="does not contain PACS.*the files are kept"):
        download_dataset("pacs", tmp_path / "data", server.url, Said())


def test_a_folder_in_the_way_is_told_before_anything_is_fetched(server, tmp_path):
    (tmp_path / "PACS").mkdir()
    (tmp_path / "PACS" / "notes.txt").touch()
    with pytest.raises(DataError, match="is there already and not empty"):
        download_dataset("pacs", tmp_path, server.url, Said())
    assert server.asked == []


def test_an_archive_put_there_by_hand_needs_no_address(tmp_path):
    with pytest.raises(DataError, match=r"no address is known for terra_inc.*\.zip.*--url"):
        download_dataset("TerraIncognita", tmp_path, None, Said())
    (tmp_path / "PACS.zip").write_bytes(pacs_zip())
    download_dataset("pacs", tmp_path, "http://127.0.0.1:9/none", Said())
    assert (tmp_path / "PACS" / "kfold" / "sketch").is_dir()


@pytest.fixture
def in_parts(monkeypatch, server):
    """PACS as one zip for each domain, served by what an address ends in; what was asked for."""
    known, asked, parts = KNOWN["pacs"], [], {}
    for domain in known.domain_names:
        others = [f"{d}/{n}/pic_{i:03d}.jpg" for (d, n), count in known.counts.items()
                  for i in range(count) if d != domain]  # fmt: skip
        parts[domain] = pacs_zip("", without=others)
    urls = tuple(f"{server.url.removesuffix('PACS.zip')}{d}.zip" for d in known.domain_names)
    monkeypatch.setitem(KNOWN, "pacs", dataclasses.replace(known, urls=urls))

    def fetched(url, archive, say, most):
        asked.append(domain := url.split("/")[-1].removesuffix(".zip"))
        server.content = parts[domain]
        return download(url, archive, say, most=most)

    monkeypatch.setattr(fetch, "download", fetched)
    return asked, parts


def test_archives_of_domains_are_fetched_one_after_another(in_parts, tmp_path, small_pacs):
    asked, parts = in_parts
    whole, parts["photo"] = parts["photo"], b"no zip"
    with pytest.raises(DataError):
        download_dataset("pacs", tmp_path, None, Said())
    done = asked.index("photo")
    assert left(tmp_path / "PACS") == sorted(asked[:done])
    parts["photo"] = whole
    for archive in tmp_path.glob("*.zip"):
        archive.unlink()
    said = Said()
    assert download_dataset("pacs", tmp_path, None, said) == tmp_path / "PACS"
    assert f"PACS: {small_pacs} images, 4 domains, 7 classes, as published" in said
    assert sorted(asked) == sorted([*KNOWN["pacs"].domain_names, "photo"])
    again = Said()
    download_dataset("pacs", tmp_path, None, again)
    assert "nothing is downloaded" in again[0] and len(asked) == 5


def test_a_copy_elsewhere_is_not_downloaded_again(in_parts, tmp_path):
    with zipfile.ZipFile(io.BytesIO(pacs_zip("pacs/"))) as archive:
        archive.extractall(tmp_path)
    said = Said()
    assert download_dataset("pacs", tmp_path, None, said) == tmp_path / "pacs"
    assert "nothing is downloaded" in said[0] and not in_parts[0]


@pytest.fixture
def hub(monkeypatch):
    """snapshot_download of PACS's small counts; content["lost"] rows are left out."""
    need("pyarrow", "huggingface_hub")
    import huggingface_hub
    import pyarrow
    from pyarrow import parquet

    content = {"lost": 0}

    def snapshot(repository, *, repo_type, allow_patterns, local_dir):
        assert (repository, repo_type, allow_patterns) == (
            "flwrlabs/pacs",
            "dataset",
            ["*.parquet"],
        )
        names = sorted(KNOWN["pacs"].class_names)
        rows = [(d, names.index(n)) for (d, n), count in KNOWN["pacs"].counts.items()
                for _ in range(count)][content["lost"] :]  # fmt: skip
        images = pyarrow.array([{"bytes": b"x", "path": f"{i}.jpg"} for i in range(len(rows))])
        table = pyarrow.table({"image": images, "domain": [d for d, _ in rows],
                               "label": pyarrow.array([label for _, label in rows])})  # fmt: skip
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        meta = {"huggingface": json.dumps({"info": {"features": features}})}
        (local_dir / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(table.replace_schema_metadata(meta),
                            local_dir / "data" / "train-00000-of-00001.parquet")  # fmt: skip

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return content


def test_the_hubs_copy_is_counted_and_extract_is_named(hub, tmp_path, small_pacs):
    said = Said()
    found = fetch.download_from_hub("pacs", tmp_path, said)
    assert found == tmp_path / "hub" / "PACS"
    assert f"PACS: {small_pacs} images, 4 domains, 7 classes, as published" in said
    assert said[-1] == f"next: ./run.sh extract --dataset {found}"
    call(*shlex.split(said[-1].split("run.sh ")[1]), "--dry-run")
    hub["lost"] = 1
    with pytest.raises(DataError, match="differs from the published PACS in 1 counts"):
        fetch.download_from_hub("pacs", tmp_path, Said())


def test_what_the_hub_lacks_is_said(monkeypatch, tmp_path):
    need("huggingface_hub")
    import huggingface_hub

    with pytest.raises(DataError, match="no repository of VLCS is known; there are pacs, office"):
        fetch.download_from_hub("vlcs", tmp_path, Said())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match="could not be downloaded: division.*without --hub"):
        fetch.download_from_hub("pacs", tmp_path, Said())
    result = call("download", "pacs", "--hub", "--url", "http://127.0.0.1:9/x", code=2)
    assert "exclude each other" in result.stderr
