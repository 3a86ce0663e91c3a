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
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenflow.flow import Exponents, Stats

if TYPE_CHECKING:
    from evenflow.trace.compiled import Reading

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
    layout = _FLOAT64 if flat.dtype is torch.float64 else _FLOAT32
    fields = subnormal = None
    zeros = 0
    total = square = largest = 0.0
    for piece in flat.split(_CHUNK) if flat.numel() > _CHUNK else (flat,):
        if piece.numel() == 0:
            continue
        counts, piece_zeros, piece_total, piece_square, piece_largest = _read(piece, layout)
        fields = counts if fields is None else fields + counts
        zeros += piece_zeros
        if counts[0] > piece_zeros:
            small = _subnormal(_size(piece, layout), layout)
            subnormal = small if subnormal is None else subnormal + small
        if counts[-1]:
            finite_only = torch.where(torch.isfinite(piece), piece, 0)
            _, _, piece_total, piece_square, piece_largest = _read(finite_only, layout)
        total += piece_total
        square += piece_square
        largest = max(largest, piece_largest)
    if fields is None:
        return Stats(0, 0.0, 0.0, 0.0, 0, 0, Exponents())
    nonfinite = int(fields[-1])
    finite = flat.numel() - nonfinite
    return Stats(
        count=flat.numel() * repeats,
        mean=total / finite if finite else 0.0,
        mean_square=square / finite if finite else 0.0,
        abs_max=largest,
        zero_count=zeros * repeats,
        nonfinite_count=nonfinite * repeats,
        exponents=_exponents(fields, subnormal, layout, repeats),
    )


def _read(piece: Tensor, layout: _Format) -> Reading:
    """Read ``piece`` [n] by compiled code if there is some, else by PyTorch."""
    compiled = _compiled()
    if compiled is None or layout is _FLOAT64 or piece.device.type != "cpu":
        return _read_by_torch(piece, layout)
    if piece.dtype is not torch.float32:
        piece = _BUFFERS.get("wide", piece, torch.float32).copy_(piece)
    return compiled(piece)


@cache
def _compiled() -> Callable[[Tensor], Reading] | None:
    """What reads a float32 tensor [n] in main memory; None without numba, which takes a while to load."""
    try:
        from evenflow.trace.compiled import read
    except ImportError:
        return None
    return read


def _read_by_torch(piece: Tensor, layout: _Format) -> Reading:
    size = _size(piece, layout)
    largest = float(size.max())
    counts = _exponent_fields(size, layout)
    zeros = int(counts[0])
    if zeros:
        zeros -= int(_subnormal(_size(piece, layout), layout).sum())
    x = piece if layout is _FLOAT64 else _BUFFERS.get("sum", piece, torch.float64).copy_(piece)
    return counts, zeros, float(x.sum()), float(torch.dot(x, x)), largest


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


def _exponents(
    fields: npt.NDArray[np.int64], subnormal: npt.NDArray[np.int64] | None, layout: _Format, repeats: int
) -> Exponents:
    low, counts = 1 - layout.bias, fields[1:-1]
    if subnormal is not None:
        low, counts = low - layout.subnormal_bins, np.concatenate([subnormal, counts])
    return Exponents.from_dense(low, counts if repeats == 1 else counts * repeats)


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
    """All entries as one axis, without a copy if any order of axes is contiguous."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)
