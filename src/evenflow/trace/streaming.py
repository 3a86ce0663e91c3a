"""Sums over many float32 tensors in main memory, in one call, as fast as they can be read.

Compiled by numba; without it this module cannot be imported. A call takes addresses, so that a
thousand small tensors cost one call of Python. Of the entries x of each tensor it
writes a row

    n, Σx, Σx², max|x|, number of entries that are not finite

where the sums and the maximum are over the finite entries.

A tensor is read in blocks of 4096 entries that stay in the first-level cache.
Within a block, sums are float32 in the lanes of the processor's vectors (at least
eight, so at most 512 entries each: rounding errors of 2⁻²⁴ that add up like a
random walk stay below 2·10⁻⁶), across blocks float64. A block whose sum of squares
is outside what float32 holds without loss (:data:`SMALLEST_MEAN_SQUARE`) is read
again in float64, while it is in the cache.

The reference is :func:`evenflow.watch.moments.reference`, which is PyTorch alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from evenflow.trace.compiled import array, compile_function, pointer

COLUMNS = 5
"""Numbers in a row."""
SMALLEST_MEAN_SQUARE = 2.0**-106
"""A product below 2⁻¹²⁶ may be flushed to zero, and loses at most that: 2⁻²⁰ of mean squares from here on."""
_BLOCK = 4096

Addresses: TypeAlias = npt.NDArray[np.int64]
Counts: TypeAlias = npt.NDArray[np.int64]
Totals: TypeAlias = npt.NDArray[np.float64]


# Lanes reorder sums. Integers in place of |x|: their order is the same, NaN comes last, and both vectorise.
@compile_function(fastmath={"reassoc", "contract", "nsz"})
def _lanes(x: Any, bits: Any) -> Any:
    total, square, largest = np.float32(0.0), np.float32(0.0), np.uint32(0)
    for i in range(x.size):
        value = x[i]
        total += value
        square += value * value
        largest = np.uint32(max(np.uint32(bits[i] & np.uint32(0x7FFFFFFF)), largest))
    return total, square, largest


@compile_function()
def _add(x: Any, bits: Any, row: Any, largest: Any) -> Any:
    """Add a block to ``row``; returns the bits of the largest finite absolute value so far."""
    total, square, peak = _lanes(x, bits)
    if SMALLEST_MEAN_SQUARE * x.size < square < np.inf:
        row[1] += total
        row[2] += square
    elif peak > 0:
        infinity, peak = np.uint32(0x7F800000), np.uint32(0)
        for i in range(x.size):
            size = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
            if size < infinity:
                value = np.float64(x[i])
                row[1] += value
                row[2] += value * value
                peak = np.uint32(max(size, peak))
            else:
                row[4] += 1.0
    return np.uint32(max(peak, largest))


@compile_function()
def _finish(row: Any, count: Any, largest: Any) -> None:
    last = np.empty(1, np.uint32)
    last[0] = largest
    row[0], row[3] = count, last.view(np.float32)[0]


@compile_function()
def one(address: int, count: int, out: int) -> Any:
    """Read ``count`` entries at ``address``; the row goes to the address ``out``.

    Returns:
        How many entries are not finite.
    """
    x = array(pointer(address), count, np.float32)
    bits = array(pointer(address), count, np.uint32)
    row = array(pointer(out), COLUMNS, np.float64)
    row[:] = 0.0
    largest = np.uint32(0)
    for start in range(0, count, _BLOCK):
        largest = _add(x[start : start + _BLOCK], bits[start : start + _BLOCK], row, largest)
    _finish(row, count, largest)
    return row[4]


@compile_function()
def read(addresses: Addresses, counts: Counts, out: int) -> Any:
    """Read several tensors [tensors]; the rows go to ``out``, one after the other.

    Returns:
        How many entries are not finite.
    """
    nonfinite = 0.0
    for i in range(addresses.size):
        nonfinite += one(addresses[i], counts[i], out + 8 * COLUMNS * i)
    return nonfinite


@compile_function(fastmath={"reassoc", "contract", "nsz"})
def _total(x: Any) -> Any:
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i]
    return total


@compile_function()
def totals(addresses: Addresses, counts: Counts, out: Totals) -> None:
    """Sums over all entries of several tensors, into ``out`` [tensors]; NaN or infinite where an entry is."""
    for i in range(addresses.size):
        x = array(pointer(addresses[i]), counts[i], np.float32)
        out[i] = 0.0
        for start in range(0, x.size, _BLOCK):
            out[i] += _total(x[start : start + _BLOCK])


@compile_function()
def _differ(bits: Any, others: Any) -> Any:
    """Bits that any two entries do not share."""
    found = np.uint32(0)
    for i in range(bits.size):
        found = np.uint32(found | np.uint32(bits[i] ^ others[i]))
    return found


@compile_function()
def _move(bits: Any, to: Any) -> None:
    for i in range(to.size):
        to[i] = bits[i]


@compile_function()
def keep(addresses: Addresses, counts: Counts, copies: Addresses, out: int) -> None:
    """As :func:`read`; what another address does not hold already, bit by bit, is copied to it.

    Args:
        addresses: Of the tensors.
        counts: How many entries they have.
        copies: Where each is copied to.
        out: Address of the first row.
    """
    for i in range(addresses.size):
        count = counts[i]
        x = array(pointer(addresses[i]), count, np.float32)
        bits = array(pointer(addresses[i]), count, np.uint32)
        copy = array(pointer(copies[i]), count, np.uint32)
        row = array(pointer(out + 8 * COLUMNS * i), COLUMNS, np.float64)
        row[:] = 0.0
        largest = np.uint32(0)
        for start in range(0, count, _BLOCK):
            block, kept = bits[start : start + _BLOCK], copy[start : start + _BLOCK]
            largest = _add(x[start : start + _BLOCK], block, row, largest)
            if _differ(block, kept) != 0:
                _move(block, kept)
        _finish(row, count, largest)


@compile_function()
def _replace(x: Any, y: Any, difference: Any) -> None:
    """The difference x − y, and y in the place of x."""
    for i in range(difference.size):
        value = y[i]
        difference[i] = x[i] - value
        x[i] = value


@compile_function()
def change(old: Addresses, new: Addresses, counts: Counts, out: int) -> None:
    """As :func:`read`, of the differences old − new, taken in float32; then old is new."""
    difference = np.empty(_BLOCK, np.float32)
    bits = difference.view(np.uint32)
    for i in range(old.size):
        count = counts[i]
        x = array(pointer(old[i]), count, np.float32)
        y = array(pointer(new[i]), count, np.float32)
        row = array(pointer(out + 8 * COLUMNS * i), COLUMNS, np.float64)
        row[:] = 0.0
        largest = np.uint32(0)
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            _replace(x[start : start + size], y[start : start + size], difference[:size])
            largest = _add(difference[:size], bits[:size], row, largest)
        _finish(row, count, largest)


@compile_function()
def _outside(x: Any, low: Any, high: Any) -> Any:
    count = np.int32(0)
    for i in range(x.size):
        count = np.int32(count + np.int32(x[i] < low) + np.int32(x[i] > high))
    return count


@compile_function()
def outside(address: int, count: int, low: float, high: float) -> Any:
    """How many of ``count`` entries at ``address`` are below ``low`` or above ``high``; NaN is neither."""
    x = array(pointer(address), count, np.float32)
    found = 0
    for start in range(0, count, _BLOCK):
        found += _outside(x[start : start + _BLOCK], np.float32(low), np.float32(high))
    return found


def load() -> None:
    """Compile all of these, or load what was compiled before."""
    x, copy, out = np.ones(1, np.float32), np.ones(1, np.float32), np.zeros(COLUMNS)
    address, row = x.ctypes.data, out.ctypes.data
    here, there, counts = np.array([address]), np.array([copy.ctypes.data]), np.ones(1, np.int64)
    one(address, 1, row)
    read(here, counts, row)
    totals(here, counts, out)
    keep(here, counts, there, row)
    change(there, here, counts, row)
    outside(address, 1, 0.0, 1.0)
