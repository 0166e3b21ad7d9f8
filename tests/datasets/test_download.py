"""A data set is fetched once, unpacked, found and counted, and every difference is said."""

import dataclasses
import io
import re
import shlex
import zipfile
from pathlib import Path

import pytest

from pipeline.datasets import known as domains
from pipeline.datasets.counts import KNOWN
from pipeline.datasets.fetch import download_dataset
from pipeline.errors import DataError
from tests.cli.test_cli import call
from tests.datasets.loopback import Said, serving, zipped


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


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
    with pytest.raises(DataError, match=r"no address is known for domain_net\.zip.*--url"):
        download_dataset("DomainNet", tmp_path, None, Said())
    (tmp_path / "PACS.zip").write_bytes(pacs_zip())
    download_dataset("pacs", tmp_path, "http://127.0.0.1:9/none", Said())
    assert (tmp_path / "PACS" / "kfold" / "sketch").is_dir()
