"""From a tensor to its :class:`~evenflow.flow.Stats`, exactly.

Everything is computed in float64, so that squares of gradients of 1e-30 do not
vanish before they are counted. Bits 52–62 of a float64 are its biased exponent
(1023 + floor(log2 |x|), 0 for zero, 2047 for NaN and infinity): one histogram of
them gives the exponents, the zeros and the non-finite entries together.

The floor is one read of the tensor. Work goes through in pieces that stay in
the processor's cache, so memory use is a constant and not a second copy.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from evenflow.flow import Exponents, Stats

_CHUNK = 1 << 17
"""Entries per piece: 1 MiB of float64, the second-level cache of current server cores."""

_BINS = 2048
_BIAS = 1023


def tensor_stats(tensor: Tensor) -> Stats:
    """Statistics of all entries of a tensor, which is only read.

    Args:
        tensor: Any shape, any floating or complex format, any layout. Complex
            entries count as two real ones; entries that a sparse tensor does not
            store count as zeros.
    """
    with torch.no_grad():
        tensor = tensor.detach()
        if tensor.layout is not torch.strided:
            return _sparse_stats(tensor)
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        tensor, repeats = _without_repeats(tensor)
        return _dense_stats(_flat(tensor), repeats)


def _dense_stats(flat: Tensor, repeats: int) -> Stats:
    """Statistics of ``flat`` [n] with every entry counted ``repeats`` times."""
    histogram = np.zeros(_BINS, dtype=np.int64)
    total = square = largest = 0.0
    for piece in flat.split(_CHUNK):
        if piece.numel() == 0:
            continue
        x = _float64(piece)
        exponents = x.view(torch.int64).bitwise_right_shift(52).bitwise_and_(_BINS - 1)
        counts = torch.bincount(exponents, minlength=_BINS).numpy(force=True)
        histogram += counts
        if counts[-1]:
            x = torch.where(torch.isfinite(x), x, 0.0)
        low, high = torch.aminmax(x)
        total += float(x.sum())
        square += float(torch.dot(x, x))
        largest = max(largest, -float(low), float(high))
    zeros = int(histogram[0])
    histogram[0] = 0
    if zeros and flat.dtype is torch.float64:  # zeros share their bin with float64's own subnormals
        histogram[0] = int(torch.count_nonzero(flat)) - int(histogram.sum())
        zeros -= int(histogram[0])
    nonfinite = int(histogram[-1])
    finite = flat.numel() - nonfinite
    return Stats(
        count=flat.numel() * repeats,
        mean=total / finite if finite else 0.0,
        mean_square=square / finite if finite else 0.0,
        abs_max=largest,
        zero_count=zeros * repeats,
        nonfinite_count=nonfinite * repeats,
        exponents=Exponents.from_dense(-_BIAS, histogram[:-1] * repeats),
    )


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


def _float64(piece: Tensor) -> Tensor:
    """``piece`` [n] in float64, on a device that has float64."""
    if piece.device.type == "mps":
        piece = piece.cpu()
    return piece.to(torch.float64)
