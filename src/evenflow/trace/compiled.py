"""One piece of a tensor in one pass of compiled code; importing this needs numba.

The arithmetic is that of :mod:`evenflow.trace.statistics`, which is the
reference; PyTorch needs seven passes for it. Here a block of entries is read
into the first-level cache once and counted twice: moments, a loop that the
compiler vectorises, and exponents, which go to four histograms in turn, since
neighbours often share a bin and would wait for each other's increment.

The first call compiles (a second or two); numba keeps the result on disk where it
can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from torch import Tensor

Reading = tuple[npt.NDArray[np.int64], int, float, float, float]
"""Counts by exponent field [bins], zeros, sum, sum of squares, largest absolute value.

The last three are those of the finite entries only where there are no others.
"""

_BLOCK = 4096
"""Entries per block: 16 KiB of float32, half a usual first-level cache."""


def compile_function(**options: Any) -> Callable[[Any], Any]:
    """A decorator: compiled by numba, without the interpreter's lock; kept on disk where that is possible."""

    def compile_(function: Any) -> Any:
        try:
            return numba.njit(function, nogil=True, cache=True, error_model="numpy", **options)
        except RuntimeError:  # no folder to keep the result in
            return numba.njit(function, nogil=True, error_model="numpy", **options)

    return compile_


def read(tensor: Tensor) -> Reading:
    """Read a float32 tensor [n] in main memory."""
    x = tensor.numpy()
    counts, zeros, total, square, largest = _both(x, x.view(np.uint32))
    return counts, zeros, total, square, float(np.uint32(largest).view(np.float32))


# Sums may be reordered, which is what vectorising them means; NaN and infinity keep their meaning.
@compile_function(fastmath={"reassoc", "contract"})
def _moments(x: Any, bits: Any) -> Any:
    total, square, largest, zeros = 0.0, 0.0, np.uint32(0), 0
    for i in range(x.size):
        value = np.float64(x[i])
        size = bits[i] & np.uint32(0x7FFFFFFF)
        total += value
        square += value * value
        largest = max(largest, size)
        zeros += size == 0
    return total, square, largest, zeros


@compile_function()
def _exponents(bits: Any, counts: Any) -> None:
    shift, mask = np.uint32(23), np.uint32(255)
    even = bits.size // 4 * 4
    for i in range(0, even, 4):
        counts[0, (bits[i] >> shift) & mask] += 1
        counts[1, (bits[i + 1] >> shift) & mask] += 1
        counts[2, (bits[i + 2] >> shift) & mask] += 1
        counts[3, (bits[i + 3] >> shift) & mask] += 1
    for i in range(even, bits.size):
        counts[0, (bits[i] >> shift) & mask] += 1


@compile_function()
def _both(x: Any, bits: Any) -> Any:
    total, square, largest, zeros = 0.0, 0.0, np.uint32(0), 0
    counts = np.zeros((4, 256), np.int64)
    for start in range(0, x.size, _BLOCK):
        end = min(start + _BLOCK, x.size)
        part = _moments(x[start:end], bits[start:end])
        total, square, zeros = total + part[0], square + part[1], zeros + part[3]
        largest = max(largest, part[2])
        _exponents(bits[start:end], counts)
    return counts[0] + counts[1] + counts[2] + counts[3], zeros, total, square, largest
