"""Compiled code that reads a tensor in one pass; importing this needs numba.

The arithmetic is that of :mod:`evenflow.trace.statistics` and :mod:`evenflow.trace.variety`,
which are the reference; PyTorch needs seven passes for it. A block of entries is read
into the first-level cache once and counted twice: moments, a loop that the
compiler vectorises, and exponents, which go to four histograms in turn, since
neighbours often share a bin and would wait for each other's increment. Tensors come
as addresses, which costs a small one less than the way through NumPy.

The first call compiles (a second or two); numba keeps the result on disk where it
can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from evenflow.trace.statistics import Reading

_BLOCK = 4096
"""Entries per block: 16 KiB of float32, half a usual first-level cache."""
_SUBNORMAL = 23
"""Exponents that only subnormal float32 numbers have, from −149 on."""


def compile_function(**options: Any) -> Callable[[Any], Any]:
    """A decorator: compiled by numba, without the interpreter's lock; kept on disk where that is possible."""

    def compile_(function: Any) -> Any:
        try:
            return numba.njit(function, nogil=True, cache=True, error_model="numpy", **options)
        except RuntimeError:  # no folder to keep the result in
            return numba.njit(function, nogil=True, error_model="numpy", **options)

    return compile_


def _to_pointer(context: Any, address: Any) -> Any:
    """An integer as an address, for numba."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


pointer: Any = intrinsic(_to_pointer)
"""In compiled code: an address as a pointer."""
array: Any = vars(numba)["carray"]
"""In compiled code: (pointer, shape, dtype) → what stands there."""


def read(tensor: Tensor) -> Reading:
    """Read a contiguous float32 tensor in main memory."""
    return Reading(*_read(tensor.data_ptr(), tensor.numel()))


def spread(x: Tensor) -> tuple[float, float]:
    """Sums over groups and units of ``x`` [groups, members, units], float32 in main memory.

    Returns:
        Of the variances of members (unbiased), and of their mean squares.
    """
    variance, square = _spread(x.data_ptr(), *x.shape, *x.stride())
    return variance, square


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
def _finite_moments(x: Any, bits: Any) -> Any:
    """The same of the finite entries alone, in a block that has others."""
    total, square, largest, zeros = 0.0, 0.0, np.uint32(0), 0
    for i in range(x.size):
        size = bits[i] & np.uint32(0x7FFFFFFF)
        if size < np.uint32(0x7F800000):
            value = np.float64(x[i])
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
def _subnormal(bits: Any, counts: Any) -> None:
    """Count subnormal numbers: the exponent is the place of the highest bit that is set, less 149."""
    for i in range(bits.size):
        size = np.int64(bits[i] & np.uint32(0x7FFFFFFF))
        if 0 < size < 0x00800000:
            place = -1
            while size:
                size >>= 1
                place += 1
            counts[place] += 1


@compile_function()
def _read(address: int, count: int) -> Any:
    x = array(pointer(address), count, np.float32)
    bits = array(pointer(address), count, np.uint32)
    total, square, largest, zeros, subnormal = 0.0, 0.0, np.uint32(0), 0, 0
    fields, counts = np.zeros((4, 256), np.int64), np.zeros(_SUBNORMAL + 254, np.int64)
    for start in range(0, count, _BLOCK):
        block, block_bits = x[start : start + _BLOCK], bits[start : start + _BLOCK]
        part = _moments(block, block_bits)
        if part[2] >= np.uint32(0x7F800000):
            part = _finite_moments(block, block_bits)
        total, square, zeros = total + part[0], square + part[1], zeros + part[3]
        largest = max(largest, part[2])
        _exponents(block_bits, fields)
        small = fields[:, 0].sum() - zeros
        if small > subnormal:
            _subnormal(block_bits, counts)
            subnormal = small
    whole = fields[0] + fields[1] + fields[2] + fields[3]
    counts[_SUBNORMAL:] = whole[1:255]
    peak = np.array([largest], np.uint32).view(np.float32)[0]
    return counts, -126 - _SUBNORMAL, zeros, whole[255], total, square, np.float64(peak)


@compile_function()
def _spread(
    address: int, groups: int, members: int, units: int, by_group: int, by_member: int, by_unit: int
) -> Any:
    """Distances are taken from the first member, so that members that are all alike leave no remainder."""
    size = (groups - 1) * by_group + (members - 1) * by_member + (units - 1) * by_unit + 1
    x = array(pointer(address), size, np.float32)
    variance = 0.0
    sizes, sums, squares = np.zeros(units), np.empty(units), np.empty(units)
    for group in range(groups):
        sums[:], squares[:] = 0.0, 0.0
        first = group * by_group
        for member in range(members):
            place = first + member * by_member
            for unit in range(units):
                value = np.float64(x[place + unit * by_unit])
                apart = value - np.float64(x[first + unit * by_unit])
                sizes[unit] += value * value
                sums[unit] += apart
                squares[unit] += apart * apart
        for unit in range(units):
            variance += max(squares[unit] - sums[unit] * sums[unit] / members, 0.0) / (members - 1)
    return variance, sizes.sum() / members
