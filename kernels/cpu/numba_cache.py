"""Where numba keeps our compiled kernels; where it cannot keep them it compiles in memory.

All that this project changes in numba for the whole process is in this file. Other people's
functions keep numba's own cache.
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
    # Not warnings.warn: numba forgets, while it compiles, what was warned of before.
    warnings.warn_explicit(text, RuntimeWarning, __file__, 1)


def _choose_folder() -> Path | None:
    """A folder named by the sources of all kernels; None when none can be written.

    numba itself compares the file of the compiled function only, and would go on with an old exp
    inlined in it after numba_math.py has changed.
    """
    sources = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(HERE.rglob("*.py"))))
    name = f"numba-{sources.hexdigest()[:12]}"
    named = os.environ.get("NUMBA_CACHE_DIR")
    first = Path(named) if named else HERE / "__pycache__"
    others = (lambda: of_home(name), lambda: of_temporary(name))
    found = first_writable([lambda: first / name, *others])
    if found is None:
        _warn_once(
            f"no folder for compiled kernels can be written ({first}, ~/.cache/fedclip, the "
            "temporary folder): every command compiles them again; NUMBA_CACHE_DIR names another"
        )
    elif named and found.parent != first:
        _warn_once(
            f"NUMBA_CACHE_DIR={named} cannot be written; compiled kernels are kept in {found}"
        )
    return found


FOLDER = _choose_folder()


class _Checked(caching.IndexDataCacheFile):
    """numba's files of one function, read only when they are what was written for this very key.

    numba itself raises for a damaged index, runs damaged machine code, and after two processes
    compiled a function for two signatures at a time may give the code of one for the other.
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
    """What _write wrote; None for a file that is missing, damaged or unreadable."""
    try:
        content = Path(path).read_bytes()
        digest, packed = content[:32], content[32:]
        return pickle.loads(packed) if hashlib.sha256(packed).digest() == digest else None
    except Exception:  # the pickle of another numba can raise anything
        return None


class _Cache(caching.FunctionCache):
    """numba's cache of one function; a full or read-only disk ends no compilation."""

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
                "make room, or name another folder in NUMBA_CACHE_DIR"
            )


_numbas_own = dispatcher.FunctionCache


def _cache_of(py_func: Callable) -> object:
    if not py_func.__module__.startswith("kernels."):
        return _numbas_own(py_func)
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(FOLDER)
    try:
        found = _Cache(py_func) if FOLDER is not None else None
    except (OSError, RuntimeError):  # RuntimeError: no folder, as numba says it
        found = None
    finally:
        numba.config.CACHE_DIR = before
    # numba's other folders do not know of changes in kernels that are inlined.
    ours = found is not None and FOLDER in Path(found.cache_path).parents
    return found if ours else caching.NullCache()


dispatcher.FunctionCache = _cache_of


class _Uncollected(event.Listener):
    """No garbage collection while numba compiles: it searches torch's objects again and again.

    A general step compiles in 8.9 s instead of 10.5. That it does is logged once a process: nothing
    else is seen meanwhile.
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
