"""A tensor on a GPU read once: moments, zeros, entries that are not finite, histogram of exponents.

One Triton kernel in place of the reductions of :mod:`evenflow.trace.statistics`, which is
its reference, each of which reads the tensor anew. A program reads blocks of the
tensor in turn; sums are float64. Every program leaves one row of partial results, to
be joined in a fixed order, so the same tensor gives the same numbers each time; only
the histogram, which holds integers, is added up by atomic operations.

Tested against the reference in Triton's interpreter, on tensors in main memory. It has
never run on a GPU, and has not been timed there. So before it is used on a device,
:func:`reader_for` compares it with PyTorch on that device, and takes PyTorch where it
differs or fails.

Importing this needs triton.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BINS = 256
"""Values of the exponent field of float32; shorter formats are widened, which is exact."""
_BLOCK = 4096
_MOST_PROGRAMS = 1024
_PARTS = 5


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(  # type: ignore[no-untyped-def]
    x_pointer, parts_pointer, counts_pointer, n, programs,
    HISTOGRAM: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    total = tl.zeros((), tl.float64)
    square = tl.zeros((), tl.float64)
    largest = tl.zeros((), tl.float32)
    zeros = tl.zeros((), tl.int64)
    nonfinite = tl.zeros((), tl.int64)
    for start in range(program * BLOCK, n, programs * BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < n
        x = tl.load(x_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        exponent = size >> 23
        finite = exponent < 255
        value = tl.where(finite, x, 0.0)
        wide = value.to(tl.float64)
        total += tl.sum(wide, 0)
        square += tl.sum(wide * wide, 0)
        largest = tl.maximum(largest, tl.max(tl.abs(value), 0))
        zeros += tl.sum((inside & (size == 0)).to(tl.int64), 0)
        nonfinite += tl.sum((inside & (exponent == 255)).to(tl.int64), 0)
        if HISTOGRAM:
            counts = tl.histogram(exponent, BINS)
            bins = tl.arange(0, BINS)
            outside = BLOCK - tl.sum(inside.to(tl.int32), 0)  # read as zeros
            tl.atomic_add(counts_pointer + bins, (counts - tl.where(bins == 0, outside, 0)).to(tl.int64))
    row = parts_pointer + program * 5
    tl.store(row, total)
    tl.store(row + 1, square)
    tl.store(row + 2, largest.to(tl.float64))
    tl.store(row + 3, zeros.to(tl.float64))
    tl.store(row + 4, nonfinite.to(tl.float64))


def read(x: Tensor, *, histogram: bool) -> tuple[Tensor, Tensor]:
    """Read ``x`` [n], of float32 or a shorter format, without waiting for the device.

    Returns:
        Sum, sum of squares and largest absolute value of the finite entries, number of zeros and
        of entries that are not finite [5], float64; counts by exponent field [256], zeros if not asked for.
    """
    programs = max(min(triton.cdiv(x.numel(), _BLOCK), _MOST_PROGRAMS), 1)
    parts = torch.empty(programs, _PARTS, dtype=torch.float64, device=x.device)
    counts = torch.zeros(BINS, dtype=torch.int64, device=x.device)
    _kernel[(programs,)](x, parts, counts, x.numel(), programs, HISTOGRAM=histogram, BLOCK=_BLOCK, BINS=BINS)
    joined = parts.sum(0)
    joined[2] = parts[:, 2].max()
    return joined, counts


Reader = Callable[[Tensor], Tensor]


@cache
def reader_for(device: torch.device, reference: Reader) -> Reader:
    """What reads moments [n, Σx, Σx², max|x|, not finite] on a device: the kernel, if it proves right there.

    Args:
        device: Where the tensors are.
        reference: The same by PyTorch.
    """

    def fused(x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return reference(x)
        joined, _ = read(x, histogram=False)
        joined[3] = joined[4]
        return torch.cat([torch.full((1,), x.numel(), dtype=torch.float64, device=x.device), joined[:4]])

    sample = torch.linspace(-3.0, 5.0, 3 * _BLOCK + 7, device=device)
    sample[[5, 4100]] = torch.tensor([torch.nan, torch.inf], device=device)
    return fused if _agree(fused, reference, sample) else reference


def _agree(fused: Reader, reference: Reader, sample: Tensor) -> bool:
    """Whether both say the same; a kernel that cannot be built or run does not."""
    try:
        found: Any = fused(sample)
        return bool(torch.allclose(found, reference(sample), rtol=1e-5))
    except Exception:
        return False
