"""Dead and saturated: what the output of an activation function says of its units.

* A *unit* is a channel of a convolution's output (axis 1) or an entry of the
  last axis. A rectifier's unit is dead on a batch when it is zero for all of it.
* An entry of a sigmoid-like output is saturated when the derivative there is
  below a tenth of its largest value. With ``y`` rescaled to [−1, 1] the derivative
  of both sigmoid and tanh is proportional to 1 − y², so that is ``y² > 0.9``.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECTIFIERS = frozenset({"relu", "threshold", "hardtanh", "clamp_min", "clamp"})
_SQUASHING = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "erf": (-1.0, 1.0)}
_SATURATED_ABOVE = 0.9**0.5
_SMALL, _PARTS = 1 << 16, 16
"""Of an output with more entries than that, a part of the samples comes first: few units are silent there."""


def dead_fraction(op: str, output: Tensor, *, channels_first: bool) -> float | None:
    """Share of units that are zero for the whole batch; None if ``op`` is no rectifier.

    Args:
        op: PyTorch's name of the op.
        output: Its output [batch, …].
        channels_first: Whether units lie along axis 1 rather than the last one.
    """
    if op not in RECTIFIERS or output.ndim < 2:
        return None
    axis = 1 if channels_first else output.ndim - 1
    part = output if output.numel() <= _SMALL else output[: -(-len(output) // _PARTS)]
    silent = _silent(part, axis)
    dead = int(silent.sum())
    if dead and part is not output:
        dead = int(_silent(output[len(part) :].index_select(axis, silent.nonzero()[:, 0]), axis).sum())
    return dead / max(silent.numel(), 1)


def _silent(output: Tensor, axis: int) -> Tensor:
    """Which units, those along ``axis``, are zero everywhere [units]."""
    others = [other for other in range(output.ndim) if other != axis]
    return (output != 0).sum(dim=others) == 0


def saturated_fraction(op: str, output: Tensor) -> float | None:
    """Share of entries with nearly no derivative; None if ``op`` does not squash."""
    count = saturated_count(op, output)
    return None if count is None or not output.numel() else float(count) / output.numel()


def saturated_count(op: str, output: Tensor) -> Tensor | None:
    """Number of entries with nearly no derivative, on the output's device; None if ``op`` does not squash."""
    bounds = unsaturated(op)
    return None if bounds is None else torch.count_nonzero((output < bounds[0]) | (output > bounds[1]))


def unsaturated(op: str) -> tuple[float, float] | None:
    """Between which values the output of ``op`` is not saturated; None if it does not squash."""
    if op not in _SQUASHING:
        return None
    low, high = _SQUASHING[op]
    centre, reach = (low + high) / 2, _SATURATED_ABOVE * (high - low) / 2
    return centre - reach, centre + reach
