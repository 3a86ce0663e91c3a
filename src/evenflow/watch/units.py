"""Dead and saturated units of modules that are one activation function.

Two more reductions, over the outputs of such modules alone: the largest entry of
each unit of a rectifier (its outputs are never negative, so a unit whose largest
is 0 was 0 throughout), and a count of the entries on the flat ends of a sigmoid or
tanh. What the shares mean is said in :mod:`evenflow.trace.units`. Activation
functions that are called without a module are not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from evenflow.trace.units import saturated_count, unsaturated
from evenflow.watch.moments import is_plain, streams

Share: TypeAlias = float | Tensor
"""A number from 0 to 1; a tensor as long as it is on a device."""

RECTIFIERS: Collection[type[nn.Module]] = (nn.ReLU, nn.ReLU6)
"""Modules of which units can be dead."""
SQUASHING: Mapping[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}
"""Modules that saturate → name of the op."""


def dead_share(output: Tensor, *, channels_first: bool) -> Share | None:
    """Share of units that are zero for the whole batch; None if there is no batch.

    Args:
        output: Of a rectifier [batch, …].
        channels_first: Whether units lie along axis 1 rather than the last one.
    """
    if output.ndim < 2 or output.numel() == 0:
        return None
    unit = 1 if channels_first else output.ndim - 1
    largest = output.detach().amax(dim=[axis for axis in range(output.ndim) if axis != unit])
    return 1.0 - _value(torch.count_nonzero(largest)) / largest.numel()


def saturated_share(op: str, output: Tensor) -> Share | None:
    """Share of entries of a squashing op's output with nearly no derivative; None if there are none."""
    if not output.numel():
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
