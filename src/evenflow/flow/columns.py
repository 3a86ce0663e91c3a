"""Columns of Arrow tables as NumPy arrays, by way of their memory alone.

Arrow's own conversions (``to_numpy``, and whatever takes a Python number) load
pandas where it is installed, which takes longer than reading a run. A column
of numbers is plain memory and a bit for each entry that says whether it is there.

References:
    Arrow columnar format, "Fixed-Size Primitive Layout" and "Validity bitmaps".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def to_numpy(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    """A column of numbers [rows]; as floats, with NaN where there is none, if there is not one in each row.

    Args:
        column: Integers or floats of 8 to 64 bits.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [_chunk(chunk) for chunk in chunks]
    if not arrays:
        return np.empty(0, _dtype(column.type))
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def where(rows: pa.Table, chosen: npt.NDArray[np.bool_]) -> pa.Table:
    """The chosen rows.

    Args:
        rows: A table.
        chosen: For each row whether it is [rows].
    """
    bits = pa.py_buffer(np.packbits(chosen, bitorder="little"))
    return rows.filter(pa.Array.from_buffers(pa.bool_(), len(chosen), [None, bits]))


def no_rows(schema: pa.Schema) -> pa.Table:
    """A table of these columns without rows."""
    return pa.Table.from_batches([], schema)


def _chunk(chunk: pa.Array) -> npt.NDArray[Any]:
    validity, memory = chunk.buffers()
    end = chunk.offset + len(chunk)
    if memory is None:  # of no rows at all
        return np.empty(0, _dtype(chunk.type))
    values: npt.NDArray[Any] = np.frombuffer(memory, _dtype(chunk.type), end)[chunk.offset :]
    if validity is None or not chunk.null_count:
        return values
    known = np.unpackbits(np.frombuffer(validity, np.uint8), count=end, bitorder="little")[chunk.offset :]
    return np.where(known.view(bool), values, np.nan)


def _dtype(kind: pa.DataType) -> npt.DTypeLike:
    width = kind.bit_width // 8
    return (
        f"f{width}"
        if pa.types.is_floating(kind)
        else f"{'i' if pa.types.is_signed_integer(kind) else 'u'}{width}"
    )
