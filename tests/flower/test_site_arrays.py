"""Bytes of arrays that a peer sends: read as they are, or refused."""

import io
import math
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.flower.records import plain, records

FEW = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


HEADERS = [
    b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"PK\x03\x04",
    b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 70_000,
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (\n 1" + b" " * 80,
    b"\x93NUMPY\x01\x00v\x00  {'a':\n 1\n  b" + b" " * 99 + b"\n",
    b"\x93NUMPY\x01\x00v\x00" + b"-" * 118, b"\x93NUMPY\x01\x00v\x00" + b"[" * 118,
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,), }\n",
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9999999999), }\n",
]  # fmt: skip


def reply(data):
    """The array that the server's app makes of some bytes, or why not."""
    content = records({}, {}, {})
    content["arrays"] = ArrayRecord({"x": Array("f", (1,), "numpy.ndarray", data)})
    try:
        return plain(content)[0]["x"]
    except ValueError as error:
        return str(error)


def test_a_header_that_attacks_is_refused():
    pickled = np.array([{"a": 1}], object)
    fortran = np.asfortranarray(np.zeros((3, 2), np.float32))
    others = [npy(a) for a in (pickled, fortran, np.zeros(3, np.float128), np.zeros((), np.float32),
                               np.zeros((1, 1, 1), np.float32), np.zeros(3, np.int64))]  # fmt: skip
    for data in (*HEADERS[:-1], *others):
        tracemalloc.start()
        found = reply(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(found, str) and peak < 2**24, data[:80]
    assert reply(HEADERS[-1]).size == 0  # of no number at all, whatever its second axis


@pytest.mark.parametrize("shape", [(0,), (1,), (312,), (4, 12), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_arrays_that_are_sent_are_read(shape, dtype):
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    found = reply(npy(array))
    assert found.dtype == dtype and np.array_equal(found, array)


@FEW
@given(data=st.data())
def test_damaged_arrays_are_refused_or_read(data):
    sound = bytearray(npy(np.arange(6, dtype=np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    cut_at = data.draw(st.integers(0, len(sound)) | st.just(len(sound)))
    found = reply(bytes(sound[:cut_at]))
    assert isinstance(found, str) or found.nbytes <= len(sound)
