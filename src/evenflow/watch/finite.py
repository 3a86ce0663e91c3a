"""Whether a tensor is finite, as cheaply as it can be asked.

A sum is NaN or infinite if an entry is; it costs one read. On the CPU the answer
is there at once, and a sum that overflowed over finite entries is told apart by a
second read. Elsewhere the sum stays on the device until somebody needs to know.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Flag: TypeAlias = bool | Tensor
"""Whether something is bad: known, or a sum [] on a device that is yet to be fetched."""


def bad(tensor: Tensor) -> Flag:
    """Whether an entry is NaN or infinite; without waiting for a device.

    Args:
        tensor: Any shape, any floating or complex format; only read.
    """
    x = tensor.detach()
    if x.layout is not torch.strided:
        x = x.coalesce().values() if x.layout is torch.sparse_coo else x.to_dense()
    if x.is_complex():
        x = torch.view_as_real(x)
    if not x.is_cpu:
        return x.sum(dtype=torch.float32) if x.dtype in _SHORT else x.sum()
    total = x.sum(dtype=torch.float32).item() if x.dtype in _SHORT else x.sum().item()
    return not math.isfinite(total) and not bool(torch.isfinite(x).all())


def is_bad(flag: Flag) -> bool:
    """The answer; waits for the device if it must."""
    if isinstance(flag, Tensor):
        return not bool(torch.isfinite(flag))
    return flag


_SHORT = (torch.float16, torch.bfloat16)
