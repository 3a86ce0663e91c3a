"""The hot path: few reductions over a tensor, as fast as the processor reads it.

Of the entries ``x_1 … x_n``: Σx, Σx², max|x|, and how many are not finite. On the
CPU these are one ``dot``, one ``sum`` and one ``aminmax``, taken at once, while
the tensor is still in the cache. On other devices nothing may wait for the
result, so the four numbers stay there as one small tensor until somebody asks.

A dot product in float32 loses what its products cannot hold. A product below the
smallest normal number 2⁻¹²⁶ may be flushed to zero, an error of at most n·2⁻¹²⁶,
which is below 2⁻²⁰ of the sum whenever the mean square is above 2⁻¹⁰⁶. Gradients
that vanish are smaller than that, so below it, and where the sum overflowed or
is NaN, the tensor is read again in float64. Half-precision formats are widened
first.

The exact kernel with histograms is :mod:`evenflow.trace.statistics`; it costs
some twenty times as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from evenflow.flow import Stats

_PIECE = 1 << 16
"""Entries per float32 sum. Summed in 16 lanes of 2¹² entries each, rounding errors of 2⁻²⁴ that add up like
a random walk make 2⁶·2⁻²⁴ ≈ 4e-6 of the sum at most."""
_SMALLEST = {torch.float32: 2.0**-106, torch.float64: 2.0**-1002}
"""Mean squares from which a sum of squares in that format is good to 2⁻²⁰."""


class Moments(NamedTuple):
    """Sums over the finite entries of a tensor."""

    size: int
    total: float
    square: float
    largest: float
    nonfinite: int = 0

    def stats(self, scale: float = 1.0, sign: float = 1.0) -> Stats:
        """As statistics of the entries divided by ``scale`` and times ``sign``."""
        finite = self.size - self.nonfinite
        return Stats(
            count=self.size,
            mean=sign * self.total / finite / scale if finite else 0.0,
            mean_square=self.square / finite / scale / scale if finite else 0.0,
            abs_max=self.largest / scale,
            nonfinite_count=self.nonfinite,
        )


class DeviceMoments(NamedTuple):
    """The same, still on the device: ``values`` [4] holds total, square, largest, nonfinite."""

    size: int
    values: Tensor


Taken: TypeAlias = Moments | DeviceMoments


def take(tensor: Tensor) -> Taken:
    """Moments of a tensor, which is only read; without waiting for a device.

    Args:
        tensor: Any shape, any real or complex floating format (complex entries
            count as two), any layout; entries that a sparse tensor does not store
            count as zeros.
    """
    x = _flat(tensor.detach())
    taken = _on_host(x) if x.is_cpu else DeviceMoments(x.numel(), device_moments(x))
    if tensor.layout is torch.sparse_coo:  # entries that are not stored are zeros
        return taken._replace(size=tensor.numel())
    return taken


def _on_host(x: Tensor) -> Moments:
    if x.numel() <= _PIECE:
        return _piece(x)
    return merge([_piece(piece) for piece in x.split(_PIECE)])


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


def device_moments(x: Tensor) -> Tensor:
    """Total, square, largest and nonfinite of ``x`` [n], as a tensor [4] on its device."""
    if x.numel() == 0:
        return torch.zeros(4, dtype=torch.float64, device=x.device)
    finite = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    return torch.stack(
        [
            finite.sum(dtype=torch.float64),
            torch.linalg.vector_norm(finite, dtype=torch.float64).square(),
            torch.linalg.vector_norm(finite, math.inf).double(),
            (x.numel() - torch.isfinite(x).sum()).double(),
        ]
    )


def fetch(taken: Sequence[Taken]) -> list[Moments]:
    """Bring to the host what is still on devices: one copy for each device."""
    waiting: dict[torch.device, list[int]] = {}
    for index, one in enumerate(taken):
        if isinstance(one, DeviceMoments):
            waiting.setdefault(one.values.device, []).append(index)
    found: list[Taken] = list(taken)
    for indices in waiting.values():
        rows = torch.stack([taken[index].values for index in indices]).tolist()  # type: ignore[union-attr]
        for index, (total, square, largest, nonfinite) in zip(indices, rows, strict=True):
            found[index] = Moments(taken[index].size, total, square, largest, int(nonfinite))
    return [one for one in found if isinstance(one, Moments)]


def merge(parts: Sequence[Moments]) -> Moments:
    """The moments of all entries together."""
    if len(parts) == 1:
        return parts[0]
    return Moments(
        sum(part.size for part in parts),
        sum(part.total for part in parts),
        sum(part.square for part in parts),
        max((part.largest for part in parts), default=0.0),
        sum(part.nonfinite for part in parts),
    )


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of all entries of all tensors together, with as little work as there can be; see :func:`norms`."""
    plain = all(t.layout is torch.strided and t.dtype is torch.float32 for t in tensors)
    if plain and len({t.device for t in tensors}) == 1:
        joint: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
        if not joint.is_cpu or 2.0**-40 < joint.item() < 2.0**60:
            return joint
    exact: Tensor = torch.linalg.vector_norm(norms(tensors))
    return exact


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norms [tensors] in float64, by one multi-tensor reduction for all.

    A float32 norm outside 2⁻⁴⁰ … 2⁶⁰ may have lost or overflowed squares; on the
    CPU, where looking costs nothing, those are taken again in float64.
    """
    strided = [_flat(t.detach()) if t.layout is not torch.strided else t.detach() for t in tensors]
    short = any(t.dtype in (torch.float16, torch.bfloat16) for t in strided)
    found = torch._foreach_norm(strided, 2, dtype=torch.float32) if short else torch._foreach_norm(strided)
    device, dtype = found[0].device, found[0].dtype
    if any(norm.device != device or norm.dtype != dtype for norm in found):
        found = tuple(norm.to(device, torch.float64) for norm in found)
    each = torch.stack(found).double()
    if each.is_cpu:
        for index in ((each < 2.0**-40) | ~(each < 2.0**60)).nonzero().flatten().tolist():
            each[index] = torch.linalg.vector_norm(strided[index].double())
    return each


def _flat(tensor: Tensor) -> Tensor:
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
