"""Dead and saturated units of modules that are one activation function.

Two more reductions, over the outputs of such modules alone: the largest entry of
each unit of a rectifier (its outputs are never negative, so a unit whose largest
is 0 was 0 throughout), and a count of the entries on the flat ends of a sigmoid or
tanh. What the shares mean is said in :mod:`evenflow.trace.units`. Activation
functions that are called without a module are not seen.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from evenflow.trace.units import saturated_count, unsaturated
from evenflow.watch.moments import is_plain, streams

Share: TypeAlias = float | Tensor
"""A number from 0 to 1; a tensor as long as it is on a device."""

_SQUASHING = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid"}


def dead_share(module: nn.Module, output: Tensor, *, channels_first: bool) -> Share | None:
    """Share of units that are zero for the whole batch; None if the module is no rectifier.

    Args:
        module: What ran.
        output: Its output [batch, …].
        channels_first: Whether units lie along axis 1 rather than the last one.
    """
    if type(module) not in (nn.ReLU, nn.ReLU6) or output.ndim < 2 or output.numel() == 0:
        return None
    unit = 1 if channels_first else output.ndim - 1
    largest = output.detach().amax(dim=[axis for axis in range(output.ndim) if axis != unit])
    return 1.0 - _value(torch.count_nonzero(largest)) / largest.numel()


def saturated_share(module: nn.Module, output: Tensor) -> Share | None:
    """Share of entries with nearly no derivative; None if the module does not squash."""
    op = _SQUASHING.get(type(module))
    if op is None or not output.numel():
        return None
    bounds, compiled = unsaturated(op), streams()
    assert bounds is not None
    if compiled is not None and is_plain(output):
        outside: int = compiled.outside(output.data_ptr(), output.numel(), *bounds)
        return outside / output.numel()
    count = saturated_count(op, output.detach())
    assert count is not None
    return _value(count) / output.numel()


def _value(count: Tensor) -> Share:
    """A number, unless that would wait for a device."""
    return count.item() if count.is_cpu else count
