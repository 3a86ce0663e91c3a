"""What the weights along a way do to the signal, against what they are made to do.

A layer of weights W with fan-in N multiplies the size of what it reads by
√N · RMS(W), its *gain*. Weights made for their activation have the gain g that keeps
the gradient's norm behind it: √2 behind a rectifier (He), 1 behind tanh and at the
first layer (Glorot). Layers whose scale a normalisation takes away have no gain.

References:
    He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, eq. 7-15;
    Glorot, Bengio, AISTATS 2010, eq. 10-12.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from evenflow.diagnose import ops
from evenflow.diagnose.graph import OpGraph
from evenflow.diagnose.way import Kind, Way
from evenflow.flow import Row

_TRANSPOSED = ("Conv1D",)
"""Modules of transformers that keep their weights as [in, out]."""


@dataclass(frozen=True, slots=True)
class LayerGain:
    """One layer's gain.

    Attributes:
        row: Its output's gradient.
        weight: Its weight.
        gain: √fan_in · RMS of the weight.
        made_for: What suits the activation before it.
        behind: Name of that activation; empty at the first layer or behind another layer.
    """

    row: Row
    weight: Row
    gain: float
    made_for: float
    behind: str

    @property
    def log10_excess(self) -> float:
        """log10 of gain over what suits; −inf for weights of zero."""
        return math.log10(self.gain / self.made_for) if self.gain > 0.0 else -math.inf


def gains(graph: OpGraph, way: Way) -> Iterator[LayerGain]:
    """The gains of the layers that a way leads through, in forward order; those without one are left out.

    Args:
        graph: The ops.
        way: With its steps.
    """
    first = _gain(graph, way.first, "")
    if first is not None:
        yield first
    behind = ""
    for step in way.judged:
        if step.function:
            behind = step.function
        elif step.kind is Kind.LINEAR:
            found = _gain(graph, step.output, behind)
            behind = ""
            if found is not None:
                yield found
        elif step.kind not in (Kind.OTHER, Kind.FACTOR):
            behind = ""


def _gain(graph: OpGraph, row: Row, behind: str) -> LayerGain | None:
    weights = [weight for weight in graph.weights_at(row) if weight.stats is not None]
    if len(weights) != 1 or graph.scale_is_free[row.order] or row.site.op.startswith("embedding"):
        return None
    (weight,) = weights
    if weight.stats is None or "Transpose" in row.module_type:
        return None
    fan_in = weight.shape[0] if row.module_type in _TRANSPOSED else math.prod(weight.shape[1:])
    gain = math.sqrt(fan_in) * weight.stats.rms
    return LayerGain(row, weight, gain, ops.BACKWARD_GAIN.get(behind, 1.0), behind)
