"""exp and tanh for float32 that vectorise; libm's are scalar calls, and 40 times slower.

None of the fast-math flags here allows the compiler to assume that there is no NaN: a diverged
adapter must stay visible.
"""

import numpy as np
from numba import njit

import kernels.cpu.numba_cache  # noqa: F401  its folder is chosen before a kernel is declared

F = np.float32
LEAST = F(-1e30)  # below every score; -inf would make NaN of a difference
FAST = {"reassoc", "contract", "arcp", "nsz"}
OPTIONS = {
    "error_model": "numpy",
    "fastmath": FAST,
    "nogil": True,
    "cache": True,
    "forceinline": True,
    "no_cfunc_wrapper": True,
}
"""Of kernels that Python calls. numpy's error model: a test for division by zero stops
vectorisation, and Adam on 512 x 512 then takes 805 us instead of 123. forceinline: a kernel that
calls another would run, while both are in the process that compiled them, the callee's first code,
and from the cache the one optimised once more inside the caller; with reassoc their sums differ in
the last bit."""

PART = OPTIONS | {"no_cpython_wrapper": True}
"""Of kernels that only kernels call; a call from Python ends the process."""
SPLICED = {"inline": "always"}
"""Of kernels called in one or two places: numba puts their statements there, with the caller's
options. forceinline compiles each by itself, with all it calls, and then again inside its caller:
four levels of that made local_steps compile for 20 s, of which 10 are left."""


@njit(error_model="numpy", fastmath={"contract"})
def exp(x):
    """e^x, relative error 8e-8 (root mean square 2.8e-8); x is held to -60..88 first.

    Sums keep the order they are written in: with "reassoc" the two parts of ln 2 become one, and
    the root mean square is 7.9e-8.

    Below -60 nothing is lost beside the 1 that every sum here contains, and products with it stay
    clear of denormals, which are 20 times slower. Source: Cephes expf.
    """
    x = min(max(x, F(-60.0)), F(88.0))
    k = np.floor(x * F(1.44269504) + F(0.5))  # math.floor gives an int64: no AVX2 for it
    r = x - k * F(0.693359375)
    r = r - k * F(-2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    p = p * r * r + r + F(1.0)
    bits = (np.int32(k) + np.int32(127)) << np.int32(23)
    return p * np.int32(bits).view(np.float32)


@njit(error_model="numpy", fastmath={"contract"})
def tanh(x):
    """tanh x, relative error 2e-7 (root mean square 3e-8); Source: Cephes tanhf.

    A rational function such as Eigen's errs 3e-7 absolutely, five times float32's rounding near 1:
    enough to turn the sign of a gradient that weight decay all but cancels, where Adam moves a
    weight by lr either way.
    """
    size = np.abs(x)
    square = x * x
    p = F(-5.70498872745e-3)
    p = p * square + F(2.06390887954e-2)
    p = p * square + F(-5.37397155531e-2)
    p = p * square + F(1.33314422036e-1)
    p = p * square + F(-3.33332819422e-1)
    small = p * square * x + x
    large = np.copysign(F(1) - F(2) / (exp(size + size) + F(1)), x)
    return small if size < F(0.625) else large
