"""From a tensor to its :class:`~evenflow.flow.Stats`, exactly.

Moments are summed in float64, so that squares of gradients of 1e-30 do not
vanish before they are counted. The exponent of a float is a field of its bits, so
an integer histogram of that field gives the exponents, the zeros and the
non-finite entries together:

    float32: bits 23–30 hold 127 + floor(log2 |x|);  float64: bits 52–62 hold 1023 + floor(log2 |x|)

where 0 marks zeros and subnormal numbers and all ones mark NaN and infinity.
Shorter formats are widened to float32, which holds them exactly.

The floor is one read of the tensor. Work goes in pieces through buffers that are
made once and stay in the processor's cache: fresh ones of this size would cost
more in page faults than the arithmetic does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenflow.flow import Exponents, Stats

_CHUNK = 1 << 17
"""Entries per piece: 1 MiB of float64, the second-level cache of current server cores."""


@dataclass(frozen=True, slots=True)
class _Format:
    """Where a format keeps its exponent.

    Attributes:
        real: The format.
        integer: Integer type of the same width.
        fraction_bits: Width of the fraction, below the exponent field.
        bias: What the field holds for exponent 0.
        subnormal_bins: Exponents that only subnormal numbers have; float64's own are not told apart.
    """

    real: torch.dtype
    integer: torch.dtype
    fraction_bits: int
    bias: int
    subnormal_bins: int

    @property
    def bins(self) -> int:
        """Values of the exponent field."""
        return 2 * self.bias + 2


_FLOAT32 = _Format(torch.float32, torch.int32, 23, 127, 23)
_FLOAT64 = _Format(torch.float64, torch.int64, 52, 1023, 1)


class Reading(NamedTuple):
    """What is counted of the entries of a tensor; sums and the maximum are over the finite ones.

    Attributes:
        counts: Non-zero finite entries by exponent [bins].
        low: Exponent of the first bin.
        zeros: Entries exactly zero.
        nonfinite: Entries that are NaN or infinite.
        total: Sum.
        square: Sum of squares.
        largest: Largest absolute value.
    """

    counts: npt.NDArray[np.int64]
    low: int
    zeros: int
    nonfinite: int
    total: float
    square: float
    largest: float


class _Buffers(threading.local):
    """Scratch memory, one set for each thread that takes statistics."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def get(self, use: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Room for as many entries as ``like`` [n] has, at most a piece's."""
        key = (use, like.device, dtype)
        if key not in self._made:
            self._made[key] = torch.empty(_CHUNK, dtype=dtype, device=like.device)
        return self._made[key][: like.numel()]


_BUFFERS = _Buffers()

Reader: TypeAlias = Callable[[Tensor], Stats]
"""What tells the statistics of a tensor: :func:`tensor_stats`, or a prediction of them."""


def tensor_stats(tensor: Tensor) -> Stats:
    """Statistics of all entries of a tensor, which is only read.

    Args:
        tensor: Any shape, any floating or complex format, any layout. Complex
            entries count as two real ones; entries that a sparse tensor does not
            store count as zeros.
    """
    tensor = tensor.detach()
    if tensor.device.type == "mps":  # has no float64
        tensor = tensor.cpu()
    if tensor.layout is not torch.strided:
        return _sparse_stats(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_contiguous():
        return _dense_stats(tensor.view(-1), 1)
    tensor, repeats = _without_repeats(tensor)
    return _dense_stats(_flat(tensor), repeats)


def _dense_stats(flat: Tensor, repeats: int) -> Stats:
    """Statistics of ``flat`` [n] with every entry counted ``repeats`` times."""
    count = flat.numel()
    if count == 0:
        return Stats(0, 0.0, 0.0, 0.0, 0, 0, Exponents())
    compiled = _compiled() if at_its_address(flat) and flat.dtype is not torch.float64 else None
    if compiled is not None and flat.dtype is torch.float32:
        reading = compiled(flat)
    elif compiled is not None:
        pieces = (_BUFFERS.get("wide", piece, torch.float32).copy_(piece) for piece in flat.split(_CHUNK))
        reading = reduce(_joined, map(compiled, pieces))
    else:
        reading = reduce(_joined, map(_read_by_torch, flat.split(_CHUNK)))
    finite = count - reading.nonfinite
    return Stats(
        count=count * repeats,
        mean=reading.total / finite if finite else 0.0,
        mean_square=reading.square / finite if finite else 0.0,
        abs_max=reading.largest,
        zero_count=reading.zeros * repeats,
        nonfinite_count=reading.nonfinite * repeats,
        exponents=Exponents.from_dense(
            reading.low, reading.counts if repeats == 1 else reading.counts * repeats
        ),
    )


def at_its_address(tensor: Tensor) -> bool:
    """Whether compiled code finds the entries in main memory, as they are."""
    return tensor.is_cpu and type(tensor) is Tensor and not tensor.is_neg()


@cache
def _compiled() -> Callable[[Tensor], Reading] | None:
    """What reads a float32 tensor in main memory; None without numba, which takes a while to load."""
    try:
        from evenflow.trace.compiled import read
    except ImportError:
        return None
    return read


def _joined(one: Reading, other: Reading) -> Reading:
    """Two pieces of one tensor."""
    return Reading(
        one.counts + other.counts,
        one.low,
        one.zeros + other.zeros,
        one.nonfinite + other.nonfinite,
        one.total + other.total,
        one.square + other.square,
        max(one.largest, other.largest),
    )


def _read_by_torch(piece: Tensor) -> Reading:
    """Read ``piece`` [n], of any real format."""
    layout = _FLOAT64 if piece.dtype is torch.float64 else _FLOAT32
    size = _size(piece, layout)
    largest = float(size.max())
    fields = _exponent_fields(size, layout)
    subnormal = _subnormal(_size(piece, layout), layout)
    zeros, nonfinite = int(fields[0] - subnormal.sum()), int(fields[-1])
    if nonfinite:
        piece = torch.where(torch.isfinite(piece), piece, 0)
        largest = float(_size(piece, layout).max())
    x = piece if layout is _FLOAT64 else _BUFFERS.get("sum", piece, torch.float64).copy_(piece)
    counts, low = np.concatenate([subnormal, fields[1:-1]]), 1 - layout.bias - layout.subnormal_bins
    return Reading(counts, low, zeros, nonfinite, float(x.sum()), float(torch.dot(x, x)), largest)


def _size(piece: Tensor, layout: _Format) -> Tensor:
    """Absolute values of ``piece`` [n], in a buffer."""
    size = _BUFFERS.get("size", piece, layout.real)
    return torch.abs(piece, out=size) if piece.dtype is layout.real else size.copy_(piece).abs_()


def _exponent_fields(size: Tensor, layout: _Format) -> npt.NDArray[np.int64]:
    """How many entries of ``size`` [n] have each value of the exponent field [bins]; uses ``size`` up."""
    fields = size.view(layout.integer).bitwise_right_shift_(layout.fraction_bits)
    counts: npt.NDArray[np.int64] = torch.bincount(fields, minlength=layout.bins).numpy(force=True)
    return counts


def _subnormal(size: Tensor, layout: _Format) -> npt.NDArray[np.int64]:
    """Count the subnormal entries of ``size`` [n] by exponent [subnormal_bins]."""
    is_subnormal = (size > 0).logical_and_(size < 2.0 ** (1 - layout.bias))
    if not is_subnormal.any():
        return np.zeros(layout.subnormal_bins, dtype=np.int64)
    found = size[is_subnormal]
    if layout is _FLOAT64:
        return np.array([found.numel()], dtype=np.int64)
    exponents = torch.frexp(found.double()).exponent - 1
    bins = (exponents - (1 - layout.bias - layout.subnormal_bins)).long()
    counts: npt.NDArray[np.int64] = torch.bincount(bins, minlength=layout.subnormal_bins).numpy(force=True)
    return counts


def _sparse_stats(tensor: Tensor) -> Stats:
    if tensor.layout is torch.sparse_coo:
        stored = tensor_stats(tensor.coalesce().values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        stored = tensor_stats(tensor.values())
    else:
        return tensor_stats(tensor.to_dense())
    count = math.prod(tensor.shape) * (2 if tensor.is_complex() else 1)
    implied = count - stored.count
    return stored.merge(Stats(implied, 0.0, 0.0, 0.0, implied, 0, Exponents())) if implied else stored


def _without_repeats(tensor: Tensor) -> tuple[Tensor, int]:
    """Drop the axes along which an expanded tensor shows the same memory again."""
    repeats = 1
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
            repeats *= size
    return tensor, repeats


def _flat(tensor: Tensor) -> Tensor:
    """All entries as one contiguous axis, without a copy if any order of axes is contiguous."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1).contiguous()
