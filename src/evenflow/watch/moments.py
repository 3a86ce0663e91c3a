"""The hot path: few reductions over a tensor, as fast as the processor reads it.

Of the entries ``x_1 … x_n`` of a tensor a row is written

    n, Σx, Σx², max|x|, number of entries that are not finite

where sums and maximum are over the finite ones. Rows stand in a :class:`Page` that is
made beforehand, and nothing is made of them before somebody reads the page.

* In main memory a row is written at once, while the tensor is still in the cache:
  by compiled code (:mod:`evenflow.trace.streaming`) where numba is installed, by
  PyTorch otherwise (:func:`reference`).
* On other devices nothing may wait for the result, so rows are written there, and
  fetched all at once.

The reference takes a ``dot``, a ``sum`` and an ``aminmax``. A dot product in float32
loses what its products cannot hold. A product below the smallest normal number
2⁻¹²⁶ may be flushed to zero, an error of at most n·2⁻¹²⁶, which is below 2⁻²⁰ of the
sum whenever the mean square is above 2⁻¹⁰⁶. Gradients that vanish are smaller than
that, so below it, and where the sum overflowed or is NaN, the tensor is read again
in float64. Half-precision formats are widened first.

The exact kernel with histograms is :mod:`evenflow.trace.statistics`; it costs
some twenty times as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

COLUMNS = 5
"""Numbers in a row."""
Rows: TypeAlias = npt.NDArray[np.float64]
"""Rows of moments [rows, 5]."""

_ROW_BYTES = 8 * COLUMNS
_PIECE = 1 << 16
"""Entries per float32 sum. Summed in 16 lanes of 2¹² entries each, rounding errors of 2⁻²⁴ that add up like
a random walk make 2⁶·2⁻²⁴ ≈ 4e-6 of the sum at most."""
_SMALLEST = {torch.float32: 2.0**-106, torch.float64: 2.0**-1002}
"""Mean squares from which a sum of squares in that format is good to 2⁻²⁰."""


class Moments(NamedTuple):
    """A row: sums over the finite entries of a tensor."""

    size: int
    total: float
    square: float
    largest: float
    nonfinite: int = 0


@final
class Page:
    """Room for rows of moments, which are written by number and read together, later.

    Args:
        rows: How many rows there is room for at first, which many at once are written to
            fastest; more room is made as needed.
    """

    def __init__(self, rows: int = 64) -> None:
        self._size = max(rows, 1)
        self._blocks: list[Tensor] = []
        self._addresses: list[int] = []
        self._elsewhere: dict[int, Tensor] = {}
        self._compiled = streams()
        self._grow()

    def put(self, row: int, tensor: Tensor) -> bool | None:
        """Write the moments of a tensor, which is only read, without waiting for a device.

        Args:
            row: Number of the row.
            tensor: Any shape, any real or complex floating format (complex entries
                count as two), any layout; entries that a sparse tensor does not store
                count as zeros.

        Returns:
            Whether an entry is not finite; None where that is on a device, and nobody waits for it.
        """
        if self._compiled is None or not is_plain(tensor):
            return self._put_by_torch(row, tensor)
        block, place = (0, row) if row < self._size else divmod(row, self._size)
        while block >= len(self._addresses):
            self._grow()
        out = self._addresses[block] + place * _ROW_BYTES
        nonfinite: float = self._compiled.one(tensor.data_ptr(), tensor.numel(), out)
        if self._elsewhere:
            self._elsewhere.pop(row, None)
        return nonfinite > 0.0

    def put_nothing(self, row: int) -> None:
        """Write that the moments of a tensor are not known: NaN throughout."""
        self._rows(row)[:] = math.nan
        self._elsewhere.pop(row, None)

    def put_all(self, first: int, tensors: Sequence[Tensor]) -> bool | None:
        """Write the moments of several tensors into rows from ``first`` on.

        Returns:
            Whether any entry is not finite; None where that is not known yet.
        """
        compiled = self.compiled_for(tensors)
        if compiled is not None and first + len(tensors) <= self._size:
            nonfinite: float = compiled.read(*where(tensors), self.address(first, len(tensors)))
            return nonfinite > 0.0
        flags = [self.put(row, tensor) for row, tensor in enumerate(tensors, first)]
        return True if True in flags else None if None in flags else False

    def compiled_for(self, tensors: Sequence[Tensor]) -> Any:
        """The compiled readers, if they can read all of these; None if not."""
        return self._compiled if self._compiled is not None and all(map(is_plain, tensors)) else None

    def address(self, first: int, count: int) -> int:
        """Where compiled code writes ``count`` rows from ``first`` on; they lie in the room made at first."""
        assert first + count <= self._size
        return self._addresses[0] + first * _ROW_BYTES

    def read(self, rows: int) -> Rows:
        """The first ``rows`` rows; waits for devices, with one copy from each."""
        host = torch.cat(self._blocks)[:rows] if len(self._blocks) > 1 else self._blocks[0][:rows]
        by_device: dict[torch.device, list[int]] = {}
        for row, values in self._elsewhere.items():
            by_device.setdefault(values.device, []).append(row)
        for numbers in by_device.values():
            host[numbers] = torch.stack([self._elsewhere[row] for row in numbers]).to("cpu", torch.float64)
        found: Rows = host.numpy()
        return found

    def _put_by_torch(self, row: int, tensor: Tensor) -> bool | None:
        x = flat(tensor.detach())
        found: bool | None = None
        if x.is_cpu:
            moments = reference(x)
            found = moments.nonfinite > 0
            self._rows(row)[:] = torch.tensor(moments, dtype=torch.float64)
            self._elsewhere.pop(row, None)
        else:
            self._elsewhere[row] = device_moments(x)
        if tensor.layout is torch.sparse_coo:  # entries that are not stored are zeros
            (self._elsewhere[row] if row in self._elsewhere else self._rows(row))[0] = tensor.numel()
        return found

    def _rows(self, row: int) -> Tensor:
        block, place = divmod(row, self._size)
        while block >= len(self._blocks):
            self._grow()
        return self._blocks[block][place]

    def _grow(self) -> None:
        block = torch.zeros(
            self._size, COLUMNS, dtype=torch.float64
        )  # never moved: its address is given away
        self._blocks.append(block)
        self._addresses.append(block.data_ptr())


@cache
def streams() -> ModuleType | None:
    """The compiled readers; None without numba."""
    try:
        from evenflow.trace import streaming
    except ImportError:
        return None
    return streaming


def load() -> None:
    """Have compiled code ready, so that no step waits for it: half a second, more when first compiled."""
    compiled = streams()
    if compiled is not None:
        compiled.load()


def is_plain(tensor: Tensor) -> bool:
    """Whether compiled code may read the tensor by its address."""
    return (
        tensor.dtype is torch.float32
        and tensor.is_cpu
        and (type(tensor) is Tensor or type(tensor) is nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
    )


def reference(x: Tensor) -> Moments:
    """Moments of ``x`` [n] in main memory, by PyTorch alone."""
    if x.numel() <= _PIECE:
        return _piece(x)
    parts = [_piece(piece) for piece in x.split(_PIECE)]
    return Moments(
        sum(part.size for part in parts),
        math.fsum(part.total for part in parts),
        math.fsum(part.square for part in parts),
        max(part.largest for part in parts),
        sum(part.nonfinite for part in parts),
    )


def device_moments(x: Tensor) -> Tensor:
    """Moments of ``x`` [n], as a tensor [5] on its device; by one kernel where there is Triton for it."""
    fused = _fused() if x.is_cuda else None
    if fused is None:
        return device_moments_by_torch(x)
    found: Tensor = fused.reader_for(x.device, device_moments_by_torch)(x)
    return found


@cache
def _fused() -> ModuleType | None:
    try:
        from evenflow.trace import fused
    except ImportError:
        return None
    return fused


def device_moments_by_torch(x: Tensor) -> Tensor:
    """Moments of ``x`` [n], as a tensor [5] on its device, by PyTorch alone."""
    count = torch.full((), x.numel(), dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return torch.zeros(COLUMNS, dtype=torch.float64, device=x.device)
    finite = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    return torch.stack(
        [
            count,
            finite.sum(dtype=torch.float64),
            torch.linalg.vector_norm(finite, dtype=torch.float64).square(),
            torch.linalg.vector_norm(finite, math.inf).double(),
            count - torch.isfinite(x).sum(),
        ]
    )


def merge(rows: Rows, starts: npt.NDArray[np.int64]) -> Rows:
    """The moments of all entries together, of groups of rows that begin at ``starts`` [groups]."""
    if len(starts) == len(rows):
        return rows
    merged: Rows = np.add.reduceat(rows, starts)
    merged[:, 3] = np.maximum.reduceat(rows[:, 3], starts)
    return merged


def flat(tensor: Tensor) -> Tensor:
    """All entries as one axis, without a copy wherever the memory has no holes."""
    if tensor.layout is torch.strided and tensor.is_contiguous() and not tensor.is_complex():
        return tensor.view(-1)
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_contiguous():
        # Channels-last and transposed tensors are contiguous once their axes are in order of stride.
        tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    return tensor.reshape(-1)


def _piece(x: Tensor) -> Moments:
    count = x.numel()
    if count == 0:
        return Moments(0, 0.0, 0.0, 0.0)
    if x.dtype not in _SMALLEST:
        x = x.float()
    square = torch.dot(x, x).item()
    if not _SMALLEST[x.dtype] * count < square < math.inf:
        return _exact(x)
    low, high = torch.aminmax(x)
    return Moments(count, x.sum().item(), square, max(high.item(), -low.item()))


def _exact(x: Tensor) -> Moments:
    """In float64, without the entries that are not finite."""
    finite = torch.isfinite(x)
    kept = x[finite].double()
    if kept.numel() == 0:
        return Moments(x.numel(), 0.0, 0.0, 0.0, x.numel())
    largest = kept.abs().max().item()
    return Moments(
        x.numel(), kept.sum().item(), torch.dot(kept, kept).item(), largest, x.numel() - kept.numel()
    )


def where(tensors: Sequence[Tensor]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Addresses and counts [tensors], for compiled code."""
    addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
    return addresses, np.array([tensor.numel() for tensor in tensors], np.int64)
