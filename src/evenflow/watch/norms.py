"""Norms of many tensors by one multi-tensor reduction, with as little work as there can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evenflow.watch.moments import COLUMNS, Rows, flat, is_plain, streams, where


def joint_norm(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Norm of each tensor [tensors] and of all entries together [], with little work; see :func:`norms`."""
    rows = _rows(tensors)
    if rows is not None:
        return torch.from_numpy(np.sqrt(rows[:, 2])), torch.from_numpy(
            np.sqrt(rows[:, 2].sum(keepdims=True))
        )[0]
    plain = all(t.layout is torch.strided and t.dtype is torch.float32 for t in tensors)
    if plain and len({t.device for t in tensors}) == 1:
        each = torch.stack(torch._foreach_norm(list(tensors)))
        joint: Tensor = torch.linalg.vector_norm(each)
        if not joint.is_cpu or 2.0**-40 < joint.item() < 2.0**60:
            return each, joint
    exact = norms(tensors)
    return exact, torch.linalg.vector_norm(exact)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norms [tensors] in float64, by one multi-tensor reduction for all.

    A float32 norm outside 2⁻⁴⁰ … 2⁶⁰ may have lost or overflowed squares; on the
    CPU, where looking costs nothing, those are taken again in float64.
    """
    rows = _rows(tensors)
    if rows is not None:
        return torch.from_numpy(np.sqrt(rows[:, 2]))
    strided = [flat(t.detach()) if t.layout is not torch.strided else t.detach() for t in tensors]
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


def sums(tensors: Sequence[Tensor]) -> Tensor:
    """Sums over the entries of tensors without negative ones [tensors]."""
    compiled = streams()
    if compiled is not None and all(map(is_plain, tensors)):
        found = np.empty(len(tensors))
        compiled.totals(*where(tensors), found)
        return torch.from_numpy(found)
    device = tensors[0].device
    if any(tensor.device != device for tensor in tensors):
        return torch.stack([tensor.sum().cpu() for tensor in tensors])
    if device.type == "cpu":  # where a sum is twice as fast as a norm
        return torch.stack([tensor.sum() for tensor in tensors])
    return torch.stack(torch._foreach_norm(list(tensors), 1))


def _rows(tensors: Sequence[Tensor]) -> Rows | None:
    """Moments by compiled code, which reads fastest; None where it cannot, or not all is finite."""
    compiled = streams()
    if compiled is None or not all(map(is_plain, tensors)):
        return None
    rows: Rows = np.empty((len(tensors), COLUMNS))
    return None if compiled.read(*where(tensors), rows.ctypes.data) else rows
