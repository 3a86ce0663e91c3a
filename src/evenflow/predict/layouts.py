"""Layouts of outputs that are plain to see from those of the inputs.

PyTorch works out even the shape of ``tanh(x)`` by a reference in Python, and the first
such call in a process loads the compiler, most of a second of imports. For the
ops of a plain net the answer is short: a pointwise op of contiguous floating tensors of
one shape gives another of that shape, and a product of matrices has rows and columns.
All else is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Layout: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and format."""

_UNARY = ("elu", "gelu", "hardtanh", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "tanh", "threshold")
_LIKE_ALL = frozenset(
    {
        *_UNARY,
        *(f"{name}_backward" for name in _UNARY),
        *("add", "sub", "mul", "div", "neg", "abs", "exp", "sqrt", "rsqrt", "square"),
        *("_softmax", "_log_softmax"),
    }
)
"""Ops whose output is like each of their tensors, where these are alike."""


def plain_layout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout | None:
    """The layout of the one output of an op; None where PyTorch should be asked.

    Args:
        func: The op, which gives a new tensor.
        args: Its positional arguments.
        kwargs: Its named arguments; with any but numbers PyTorch is asked.
    """
    name = func._schema.name.removeprefix("aten::")
    tensors = [value for value in args if isinstance(value, Tensor)]
    if not tensors or any(not isinstance(value, (int, float, str)) for value in kwargs.values()):
        return None
    dtype = tensors[0].dtype
    if not dtype.is_floating_point or any(t.dtype is not dtype for t in tensors):
        return None
    if name in _LIKE_ALL:
        first = tensors[0]
        alike = all(t.shape == first.shape and t.is_contiguous() for t in tensors)
        # A softmax may be asked for another format, by its last argument.
        plain = all(isinstance(value, (Tensor, int, float, str)) for value in args)
        return (
            (first.shape, _contiguous(first.shape), dtype)
            if alike and plain and 0 not in first.shape
            else None
        )
    shape = _SHAPES[name](*args, **kwargs) if name in _SHAPES else None
    return None if shape is None or 0 in shape else (torch.Size(shape), _contiguous(shape), dtype)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of contiguous memory."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _mm(a: Tensor, b: Tensor) -> tuple[int, ...] | None:
    return (a.shape[0], b.shape[1]) if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] else None


def _bmm(a: Tensor, b: Tensor) -> tuple[int, ...] | None:
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        return None
    return (a.shape[0], a.shape[1], b.shape[2])


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **_: float) -> tuple[int, ...] | None:
    shape = _mm(a, b)
    return shape if shape is not None and bias.shape == shape[1:] else None


def _sum(x: Tensor, dims: Any = None, keep: bool = False) -> tuple[int, ...] | None:
    if not x.is_contiguous() or not isinstance(dims, (list, tuple)) or not dims:
        return None
    over = {dim % x.ndim for dim in dims}
    return tuple(1 if d in over else n for d, n in enumerate(x.shape) if keep or d not in over)


_SHAPES: dict[str, Callable[..., tuple[int, ...] | None]] = {
    "mm": _mm,
    "bmm": _bmm,
    "addmm": _addmm,
    "sum": _sum,
}
"""Shapes of other ops, whose output is contiguous."""
