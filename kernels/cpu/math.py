"""float32 exp and tanh that vectorize; libm's are scalar calls, 40 times slower.

None of the fast-math flags here lets the compiler assume that NaN does not occur: a diverged
adapter must remain visible.
"""

import numpy as np
from numba import njit

import kernels.cpu.numba_cache  # noqa: F401  chooses the cache folder before kernels are declared

F = np.float32
LEAST = F(-1e30)  # below every score; with -inf, differences would be NaN
FAST = {"reassoc", "contract", "arcp", "nsz"}
OPTIONS = {
    "error_model": "numpy",
    "fastmath": FAST,
    "nogil": True,
    "cache": True,
    "forceinline": True,
    "no_cfunc_wrapper": True,
}
"""For kernels called from Python. numpy's error model: a check for division by zero prevents
vectorization, and Adam on 512 x 512 then takes 805 us instead of 123. forceinline: otherwise the
process that compiled a kernel would run its callees as compiled on their own, and processes that
load it from the cache would run them as optimized again inside the caller; with reassoc their sums
differ in the last bit."""

PART = OPTIONS | {"no_cpython_wrapper": True}
"""For kernels called only by other kernels; a call from Python crashes the process."""
SPLICED = {"inline": "always"}
"""For kernels called in one or two places: numba inlines their statements there, with the caller's
options. forceinline compiles each on its own, with everything it calls, and again inside its
caller: four levels of that took local_steps 20 s to compile, now 10."""


@njit(error_model="numpy", fastmath={"contract"})
def exp(x):
    """e^x, relative error 8e-8 (root mean square 2.8e-8); x is first clamped to -60..88.

    Sums are evaluated as written: "reassoc" would merge the two parts of ln 2 into one, and the
    root mean square error would be 7.9e-8.

    Below -60 nothing is lost next to the 1 that every sum here contains, and products with the
    result avoid denormals, which are 20 times slower. Source: Cephes expf.
    """
    x = min(max(x, F(-60.0)), F(88.0))
    k = np.floor(x * F(1.44269504) + F(0.5))  # math.floor returns int64, which AVX2 cannot convert
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
    """tanh x, relative error 2e-7 (root mean square 3e-8). Source: Cephes tanhf.

    A rational approximation such as Eigen's has an absolute error of 3e-7, five times float32's
    rounding near 1: enough to flip the sign of a gradient that weight decay nearly cancels, where
    Adam moves a weight by lr in either direction.
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
