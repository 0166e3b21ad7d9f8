"""Disk errors are reported by their cause and leave nothing behind; disks without locks."""

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import store
from cache.container import disk, locks
from cache.npz import read_npz, write_npz
from cache.table import CacheError
from pipeline.errors import ConfigError
from pipeline.files import locked
from tests.cache import caches
from tests.cache.npz_files import save
from tests.conftest import on_posix

fcntl = pytest.importorskip("fcntl", reason="takes a flock: for Linux and macOS")
FLOCK = fcntl.flock
OTHERS = (errno.EIO, errno.EPERM, errno.ENOMEM, errno.EBADF, errno.ESTALE)
WRITING = (
    *(errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EPERM, errno.ENXIO),
)


def no_flock(number: int):
    def flock(handle: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            raise OSError(number, os.strerror(number))
        FLOCK(handle, operation)

    return flock


@pytest.mark.parametrize("number", sorted(locks.NO_LOCKS))
def test_a_disk_without_locks_gets_a_lock_file(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(fcntl, "flock", no_flock(number))
    path = tmp_path / "a.h5"
    (tmp_path / "a.h5.lock").touch()  # what an older attempt left
    with caches.begin(path, caches.draw()) as writer:
        assert "no file locks" in caplog.text and caplog.text.count("\n") == 1
        with pytest.raises(CacheError, match=f"another extraction.*{os.getpid()}") as caught:
            caches.begin(path, caches.draw())
        assert "\n" not in str(caught.value)
        caches.fill(writer, caches.draw())
        writer.publish()
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
    caches.make(path, caches.draw(), force=True)
    with locked(tmp_path / "run", "training"):
        with pytest.raises(ConfigError, match="another process is training"):
            with locked(tmp_path / "run", "training"):
                pass
    with locked(tmp_path / "run", "training"):
        pass


@on_posix("kills by SIGKILL")
def test_a_killed_holder_on_a_disk_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_flock(errno.ENOLCK))
    code = (
        "import os, sys; from pathlib import Path; from filelock import SoftFileLock;"
        "lock = SoftFileLock(sys.argv[1], timeout=0); lock.acquire(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5.lock")])
    assert (tmp_path / "a.h5.lock").exists()
    caches.make(tmp_path / "a.h5", caches.draw())


@pytest.mark.parametrize("number", OTHERS)
def test_what_else_a_lock_is_refused_for_is_said(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", no_flock(number))
    for attempt in (
        lambda: caches.begin(tmp_path / "a.h5", caches.draw()),
        lambda: locked(tmp_path, "training").__enter__(),
    ):
        with pytest.raises((CacheError, ConfigError)) as caught:
            attempt()
        said = str(caught.value)
        assert os.strerror(number) in said and "lock file" in said and "another --out" in said
        assert "another extraction" not in said and "another process" not in said


def test_a_lock_held_elsewhere_is_another_extraction(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_flock(errno.EAGAIN))
    (tmp_path / "a.h5.lock").write_bytes(b"process 7 on \x1b]0;x\x07 far\n\n")
    with pytest.raises(CacheError, match=r"another extraction.*\(process 7 on \?\]0;x\? far\)"):
        caches.begin(tmp_path / "a.h5", caches.draw())


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOLCK, errno.ENOSYS])
def test_hdf5s_own_lock_is_told_as_what_it_is(tmp_path, monkeypatch, number):
    path = caches.make(tmp_path / "a.h5", caches.draw())
    words = f"Unable to open file (unable to lock file, errno = {number}, error message = '...')"
    refuse = SimpleNamespace(**vars(h5py))
    refuse.File = lambda *_, **__: (_ for _ in ()).throw(OSError(number, words))
    monkeypatch.setattr("cache.container.layout.h5py", refuse)
    for attempt in (
        lambda: store.read_table(path),
        lambda: caches.begin(tmp_path / "b.h5", caches.draw()),
    ):
        with pytest.raises(CacheError, match="HDF5_USE_FILE_LOCKING") as caught:
            attempt()
        assert "another extraction" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5"]


def test_hdf5_takes_no_lock_itself(tmp_path, monkeypatch):
    asked, real = [], h5py.File

    def opened(*args, **kwargs):
        asked.append(kwargs["locking"])
        return real(*args, **kwargs)

    monkeypatch.setattr(h5py, "File", opened)
    store.read_table(caches.make(tmp_path / "a.h5", caches.draw()))
    assert len(asked) >= 3 and not any(asked)


class Disk:
    """A disk that fails from call number `last` of writing, syncing or renaming on."""

    def __init__(self, monkeypatch, number: int, last: int) -> None:
        self.number, self.left = number, last
        raw = self

        class File(io.FileIO):
            def write(self, data):
                raw.call()
                return super().write(data)

        def opened(path, mode="r", *args, **kwargs):
            if mode not in ("wb", "r+b"):
                return open(path, mode, *args, **kwargs)
            file = File(path, mode)
            return io.BufferedWriter(file) if mode == "wb" else io.BufferedRandom(file)

        monkeypatch.setattr(Path, "open", opened)
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, real):
        def run(*args):
            self.call()
            return real(*args)

        return run

    def call(self) -> None:
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number))
        self.left -= 1


@pytest.mark.parametrize("number", WRITING)
def test_a_failed_export_leaves_nothing(tmp_path, number):
    table = read_npz(save(tmp_path))
    before = sorted(tmp_path.iterdir())
    for last in range(40):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, number, last)
            try:
                write_npz(table, tmp_path / "b.npz")
            except CacheError as error:
                assert "\n" not in str(error) and "b.npz" in str(error)
            else:
                break
        if not (tmp_path / "b.npz").exists():  # only the folder's sync comes after the rename
            assert sorted(tmp_path.iterdir()) == before
    assert last > 3 and read_npz(tmp_path / "b.npz").content_sha256 == table.content_sha256


@pytest.mark.parametrize("number", WRITING)
def test_a_failed_cache_leaves_what_the_next_command_resumes(tmp_path, number):
    drawn, path = caches.draw(), tmp_path / "a.h5"
    whole = caches.make(tmp_path / "whole.h5", drawn).read_bytes()
    for last in range(60):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, number, last)
            try:
                caches.make(path, drawn)
            except CacheError as error:
                assert "\n" not in str(error) and "a.h5" in str(error)
            else:
                break
        assert {file.name for file in tmp_path.iterdir()} <= {"whole.h5", "a.h5.partial", "a.h5"}
        caches.make(path, drawn, force=path.exists())
        assert path.read_bytes() == whole
        path.unlink()
    assert last > 5 and path.read_bytes() == whole


def free(monkeypatch, nbytes: int, inodes: int = 9) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=nbytes))
    usage = SimpleNamespace(f_files=1000, f_favail=inodes)
    monkeypatch.setattr(os, "statvfs", lambda _: usage)


@pytest.mark.parametrize(
    ("number", "nbytes", "inodes", "message"),
    [
        (errno.ENOSPC, 99, 9, "no space left: it needs 1,000 bytes, 99 are free"),
        (errno.ENOSPC, 9999, 0, "no space left for another file.*1,000 inodes in use"),
        (errno.ENOSPC, 9999, 9, "refuses them although 9,999 are free.*a quota, or space"),
        (errno.EDQUOT, 9999, 9, "your disk quota .* is used up: it needs 1,000 bytes"),
        (errno.EFBIG, 9999, 9, "too large a file for the file system"),
        (errno.EACCES, 9999, 9, "cannot be written: Permission denied"),
    ],
)
def test_which_limit_was_met(tmp_path, monkeypatch, number, nbytes, inodes, message):
    free(monkeypatch, nbytes, inodes)
    error = OSError(number, os.strerror(number))
    told = (error, OSError(f"Unable to create (errno = {number}, error message = 'x')"))
    for one in told:
        assert_said(disk.disk_error(tmp_path / "no" / "a.h5", one, 1000), message)


def assert_said(error: CacheError, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        raise error


@given(st.integers(1, 200), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
@settings(max_examples=100)
def test_every_error_of_a_disk_is_one_line(number, need, nbytes):
    with pytest.MonkeyPatch.context() as patch:
        free(patch, nbytes)
        said = str(disk.disk_error(Path("x/a.h5"), OSError(number, os.strerror(number)), need))
        assert "\n" not in said and said.startswith("x/a.h5: ")
        assert ("no space left: " in said) == (number == errno.ENOSPC)
        if need <= nbytes:  # never: it needs less than is free, so there is no space
            assert f"{nbytes:,} are free in" not in said or "although" in said


def in_the_way(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "a"


def below(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "one" / "two" / "a"


def broken_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link" / "a"


@pytest.mark.parametrize("place", [in_the_way, below, broken_link])
def test_a_file_in_a_folders_place(tmp_path, place):
    npz = save(tmp_path)
    target = place(tmp_path)
    table = read_npz(npz)
    with pytest.raises(CacheError, match="(file|link) is not a folder; move it away"):
        store.write_table(target.with_suffix(".h5"), table)
    with pytest.raises(CacheError, match=r"a\.npz"):
        write_npz(table, target.with_suffix(".npz"))


def test_a_folder_in_a_files_place(tmp_path):
    table = read_npz(save(tmp_path))
    (tmp_path / "there.h5").mkdir()
    for write in (
        lambda: store.write_table(tmp_path / "there.h5", table, force=True),
        lambda: write_npz(table, tmp_path / "there.h5", force=True),
    ):
        with pytest.raises(CacheError, match="is a folder; name a file"):
            write()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npz", "there.h5"]


class Named:
    """A path that is only os.PathLike."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __fspath__(self) -> str:
        return self._path


@pytest.mark.parametrize("kind", [str, Named, Path])
def test_paths_may_be_text(tmp_path, monkeypatch, kind):
    from pipeline import load_cache

    monkeypatch.chdir(tmp_path)
    npz, h5, out = (kind(Path(name)) for name in ("a.npz", "a.h5", "b.npz"))
    save(tmp_path)
    table = read_npz(npz)
    store.write_table(h5, table)
    store.verify(h5)
    assert store.info(h5)["rows"] == len(store.read_paths(h5)) == 40
    write_npz(store.read_table(h5), out)
    assert read_npz(out).content_sha256 == load_cache(h5).content_sha256 == table.content_sha256
    assert store.partial_of(h5) == Path("a.h5.partial")
    assert store.shard_path(h5, 1, 2) == Path("a.shard-1-of-2.h5")
    with pytest.raises(CacheError, match="in one piece, not a shard"):
        store.merge_shards(h5, out)
    with pytest.raises(CacheError, match="in one piece, not a shard"):
        store.merge_shards([h5], out)
    drawn = caches.draw()
    np.testing.assert_array_equal(
        store.read_table(caches.make(kind(tmp_path / "c.h5"), drawn)).labels, drawn["labels"]
    )


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_folders_that_cannot_be_synced_do_not_spoil_a_cache(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    store.verify(caches.make(tmp_path / "a.h5", caches.draw()))
