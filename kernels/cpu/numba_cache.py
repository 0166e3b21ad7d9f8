"""Where numba caches our compiled kernels; without a usable folder it compiles in memory.

All process-wide changes that this project makes to numba are in this file. Functions of other
packages keep numba's own cache.
"""

import functools
import gc
import hashlib
import logging
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numba
from numba.core import caching, dispatcher, event

from kernels.kept_folder import first_writable, of_home, of_temporary

LOG = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent.parent


@functools.cache
def _warn_once(text: str) -> None:
    # Not warnings.warn: compiling with numba makes Python forget which warnings it has shown.
    warnings.warn_explicit(text, RuntimeWarning, __file__, 1)


def _choose_folder() -> Path | None:
    """A folder named after a hash of all kernel sources; None if no folder can be written.

    numba itself only compares the file of the compiled function, and would keep using an old exp
    inlined into it after kernels/cpu/math.py has changed.
    """
    sources = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(HERE.rglob("*.py"))))
    name = f"numba-{sources.hexdigest()[:12]}"
    named = os.environ.get("NUMBA_CACHE_DIR")
    first = Path(named) if named else HERE / "__pycache__"
    others = (lambda: of_home(name), lambda: of_temporary(name))
    found = first_writable([lambda: first / name, *others])
    if found is None:
        _warn_once(
            f"no folder for compiled kernels is writable ({first}, ~/.cache/fedclip, the temporary "
            "folder): every command compiles them again; set NUMBA_CACHE_DIR to another folder"
        )
    elif named and found.parent != first:
        _warn_once(f"NUMBA_CACHE_DIR={named} is not writable; compiled kernels are kept in {found}")
    return found


FOLDER = _choose_folder()


class _Checked(caching.IndexDataCacheFile):
    """numba's cache files of one function, used only if intact and written for exactly this key.

    numba itself raises for a damaged index, runs damaged machine code, and, after two processes
    compiled a function for two signatures concurrently, may return one's code for the other.
    """

    def save(self, key: object, data: object) -> None:
        super().save(key, (key, data))

    def load(self, key: object) -> object:
        found = super().load(key)
        return found[1] if isinstance(found, tuple) and found[0] == key else None

    def _load_index(self) -> dict:
        found = _read(self._index_path)
        of_now = isinstance(found, tuple) and found[0] == (self._version, self._source_stamp)
        return found[1] if of_now else {}

    def _save_index(self, overloads: dict) -> None:
        self._write(self._index_path, ((self._version, self._source_stamp), overloads))

    def _load_data(self, name: str) -> object:
        return _read(self._data_path(name))

    def _save_data(self, name: str, data: object) -> None:
        self._write(self._data_path(name), data)

    def _write(self, path: str, content: object) -> None:
        packed = self._dump(content)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(packed).digest() + packed)


def _read(path: str) -> object:
    """What _write wrote; None if the file is missing, damaged or unreadable."""
    try:
        content = Path(path).read_bytes()
        digest, packed = content[:32], content[32:]
        return pickle.loads(packed) if hashlib.sha256(packed).digest() == digest else None
    except Exception:  # a pickle from another numba version can raise anything
        return None


class _Cache(caching.FunctionCache):
    """numba's cache of one function; a full or read-only disk does not stop compilation."""

    def __init__(self, py_func: Callable) -> None:
        super().__init__(py_func)
        self._cache_file = _Checked(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def save_overload(self, sig: object, data: object) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(
                f"{FOLDER}: {error.strerror or error}: kernels compiled now are not kept there; "
                "free disk space, or set NUMBA_CACHE_DIR to another folder"
            )


_numbas_own = dispatcher.FunctionCache


def _cache_of(py_func: Callable) -> object:
    if not py_func.__module__.startswith("kernels."):
        return _numbas_own(py_func)
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(FOLDER)
    try:
        found = _Cache(py_func) if FOLDER is not None else None
    except (OSError, RuntimeError):  # RuntimeError: numba found no folder
        found = None
    finally:
        numba.config.CACHE_DIR = before
    # numba's other folders do not notice changes in inlined kernels.
    ours = found is not None and FOLDER in Path(found.cache_path).parents
    return found if ours else caching.NullCache()


dispatcher.FunctionCache = _cache_of


class _Uncollected(event.Listener):
    """Disable garbage collection while numba compiles: it traverses torch's objects repeatedly.

    A general step compiles in 8.9 s instead of 10.5. Compilation is logged once per process, as
    nothing else is printed meanwhile.
    """

    def __init__(self) -> None:
        self.depth, self.collecting, self.said = 0, False, False

    def on_start(self, started: event.Event) -> None:
        compiled = (started.data or {}).get("dispatcher")
        module = getattr(getattr(compiled, "py_func", None), "__module__", "")
        if module.startswith("kernels.local") and not self.said:
            self.said = True
            LOG.info("compiling kernels, about 10 s, once")
        if self.depth == 0:
            self.collecting = gc.isenabled()
            gc.disable()
        self.depth += 1

    def on_end(self, _: event.Event) -> None:
        self.depth -= 1
        if self.depth == 0 and self.collecting:
            gc.enable()


event.register("numba:compile", _Uncollected())
