"""The way of the gradient: from the loss back to where the batch enters, step by step.

A way runs over the unavoidable ops above one entry (see
:mod:`evenflow.flow.chain`). It is judged between layers, that is, ops with
weights: from the last one outside the loss back to the first. With δ the
gradient at an op's output, the measure is

    log10 ‖δ_first‖ − log10 ‖δ_last‖

with two corrections for what no healthy network can avoid:

* *Scale that a normalisation takes away.* If everything after a tensor x up to
  a normalisation only passes its scale on, then the size s of x is arbitrary
  and δ_x goes as 1/s. There s·δ_x is compared, the gradient with respect to
  x/s. (An embedding of standard deviation .02 before a LayerNorm has
  gradients 50 times as large, and that means nothing.)
* *Averages.* A mean over k entries divides the gradient's norm by √k, but the
  weights before it sum over the k places again.

Each step's gain is then split from what a step of its kind is made to have: an
activation φ is matched by weights of gain g (:data:`~evenflow.diagnose.ops.BACKWARD_GAIN`),
so φ is expected at 1/g and the weights after it at g. What is left, the
*excess*, adds up to the whole and names the guilty.

References:
    He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, eq. 14-15.
    Hanin, "Which Neural Net Architectures Give Rise to Exploding and Vanishing
    Gradients?", NeurIPS 2018, theorem 3 (the spread of one draw, :meth:`Way.usual`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from evenflow.diagnose import ops
from evenflow.diagnose.graph import OpGraph
from evenflow.diagnose.once import once
from evenflow.flow import LOSS_PATH, Row
from evenflow.flow.chain import between

_LN10 = math.log(10.0)


class Kind(StrEnum):
    """What a step of a way is made of."""

    LINEAR = "linear"
    SQUASHING = "squashing"
    RECTIFIER = "rectifier"
    SMOOTH = "smooth"
    NORM = "norm"
    BLOCK = "block"
    """Several branches, joined by an addition."""
    POST_NORM = "post_norm"
    """A block whose sum is normalised (post-LN)."""
    FACTOR = "factor"
    """A product with one number, the same for all entries."""
    OTHER = "other"


BLOCKS = (Kind.BLOCK, Kind.POST_NORM)


@dataclass(frozen=True, slots=True)
class Step:
    """One link of a way.

    Attributes:
        rows: Its ops' gradients, in forward order; the last one is its output.
        kind: What it is made of.
        function: Name of its activation function, if it is one.
        log10_gain: Backward gain, with the corrections of this module.
        excess: What of it goes beyond the kind; all excesses add up to the way's.
        recurrent: Whether it lies inside a recurrence, which is judged along time.
    """

    rows: tuple[Row, ...]
    kind: Kind
    function: str
    log10_gain: float
    excess: float
    recurrent: bool

    @property
    def output(self) -> Row:
        """The gradient at its output."""
        return self.rows[-1]


@dataclass(frozen=True, slots=True)
class Way:
    """The gradient between the last layer and the first.

    Attributes:
        first: Gradient at the first layer's output.
        last: Gradient at the last layer's output.
        steps: What lies between, in forward order.
        log10_ratio: log10 ‖δ_first‖/‖δ_last‖ as it stands.
        plain: The same, averages and recurrences allowed for.
        excess: The same with the corrections of this module, recurrences left out.
    """

    first: Row
    last: Row
    steps: tuple[Step, ...]
    log10_ratio: float
    plain: float
    excess: float

    @property
    def certain(self) -> float:
        """What remains whichever way sizes are counted: the smaller of ``plain`` and ``excess``.

        It is 0 if they differ in sign. Where a normalisation removes the scale of
        weights, small weights have large gradients and large weights small ones,
        and neither alone is a fault.
        """
        if self.plain * self.excess <= 0.0:
            return 0.0
        return min(self.plain, self.excess, key=abs)

    @property
    def judged(self) -> tuple[Step, ...]:
        """The steps outside of recurrences."""
        return tuple(step for step in self.steps if not step.recurrent)

    @property
    def layers(self) -> int:
        """How many layers the gradient crosses, the last one included; a block counts as one."""
        return sum(step.kind in (Kind.LINEAR, *BLOCKS) for step in self.judged)

    @property
    def has_skips(self) -> bool:
        """Whether any step has a second branch around its weights."""
        return any(step.kind in BLOCKS for step in self.steps)

    def usual(self, deviations: float) -> tuple[float, float]:
        """Bounds within which finite width alone leaves log10 ‖δ‖ of a critical network.

        log ‖δ‖² is normal with mean −β/2 and variance β = Σ 5/n over layers of
        width n (the figure of rectifiers, the largest of the usual activations).

        Args:
            deviations: Half the distance of the bounds, in standard deviations.
        """
        beta = sum(5.0 / width(step.output) for step in self.judged if step.kind is Kind.LINEAR)
        mean, std = -beta / 4.0 / _LN10, math.sqrt(beta) / 2.0 / _LN10
        return mean - deviations * std, mean + deviations * std

    @property
    def half_width(self) -> float:
        """Decades by which a prediction may be off; 0 for what was measured."""
        return self.first.half_width or 0.0


def width(row: Row) -> int:
    """Units of a layer: channels of a convolution, else the last axis."""
    if not row.shape:
        return 1
    axis = 1 if "conv" in row.site.op and len(row.shape) > 1 else -1
    return max(row.shape[axis], 1)


@once
def ways(graph: OpGraph) -> tuple[Way, ...]:
    """The ways of all entries that lead over at least two layers, still without their steps.

    Entries that share a first layer share a way. A way that controls a gate or
    the weights of an attention is left out: its gradient is small wherever that
    has made up its mind, and the data have another way.
    """
    found: dict[tuple[int, int], Way] = {}
    for route in graph.routes():
        rows = [graph.gradients[order] for order in route]
        layers = [row for row in rows if row.site.path != LOSS_PATH and graph.is_layer(row)]
        if len(layers) > 1 and (ends := (layers[0].order, layers[-1].order)) not in found:
            part = [order for order in route if ends[0] <= order <= ends[1]]
            if not any(_controls(graph, order) for order in part):
                found[ends] = _way(graph, part, ())
    return tuple(found.values())


def in_steps(graph: OpGraph, way: Way) -> Way:
    """The same way with its steps filled in."""
    return _in_steps(graph, way.first.order, way.last.order)


@once
def _in_steps(graph: OpGraph, first: int, last: int) -> Way:
    part = [order for order in graph.route(first) if order <= last]
    return _way(graph, part, tuple(_steps(graph, part)))


def _controls(graph: OpGraph, order: int) -> bool:
    bounded = graph.gradients[order].site.op in (*ops.SQUASHING_SLOPE, *ops.SOFTMAX)
    return bounded and graph.is_gate(order)


def _way(graph: OpGraph, part: Sequence[int], steps: tuple[Step, ...]) -> Way:
    first, last = graph.gradients[part[0]], graph.gradients[part[-1]]
    head, foot = _log10_norm(last), _log10_norm(first)
    ratio = 0.0 if head == foot else foot - head
    links = [(a, b) for a, b in pairwise(part) if not graph.in_recurrence(a, b)]
    gains = [_gain(graph, a, b) for a, b in links]
    sizes = math.fsum(_size(graph, a) - _size(graph, b) for a, b in links)
    if math.inf in gains and -math.inf in gains:  # lost on the way and found again: its ends tell the total
        return Way(first, last, steps, ratio, ratio, ratio + sizes)
    excess = math.fsum(gains)
    return Way(first, last, steps, ratio, excess - sizes, excess)


def _steps(graph: OpGraph, part: Sequence[int]) -> list[Step]:
    pending = 0.0  # log10 of the gain that the next weights are made to have
    found: list[Step] = []
    for a, b in pairwise(part):
        rows = tuple(graph.gradients[order] for order in between(graph.inputs, a, b) or (b,))
        kind, function = _kind(graph, rows)
        gain = excess = _gain(graph, a, b)
        if function and not graph.scale_is_free[b]:
            pending = math.log10(ops.BACKWARD_GAIN.get(function, 1.0))
            excess += pending
        elif kind is Kind.LINEAR:
            excess, pending = excess - pending, 0.0
        elif kind in (Kind.NORM, Kind.BLOCK):
            pending = 0.0
        if kind is Kind.NORM and found and found[-1].kind is Kind.BLOCK:
            found[-1] = replace(found[-1], kind=Kind.POST_NORM)
        found.append(Step(rows, kind, function, gain, excess, graph.in_recurrence(a, b)))
    return found


def _kind(graph: OpGraph, rows: Sequence[Row]) -> tuple[Kind, str]:
    """What a link is made of, and the name of its activation function if it is one."""
    names = [row.site.op for row in rows]
    has_layer = any(graph.is_layer(row) for row in rows)
    if len(rows) > 1:
        if names == ["abs", "add", "div"]:
            return Kind.SQUASHING, "softsign"
        if has_layer:
            return Kind.BLOCK, ""
        return (Kind.NORM if any(op in ops.MEASURES_SCALE for op in names) else Kind.OTHER), ""
    op = names[0]
    if has_layer:
        return Kind.LINEAR, ""
    if graph.is_constant_factor(rows[0]):
        return Kind.FACTOR, ""
    for kind, family in (
        (Kind.SQUASHING, ops.SQUASHING_SLOPE),
        (Kind.RECTIFIER, ops.RECTIFIERS),
        (Kind.SMOOTH, ops.SMOOTH),
    ):
        if op in family:
            return kind, op
    return (Kind.NORM if op in ops.NORMS else Kind.OTHER), ""


def _gain(graph: OpGraph, a: int, b: int) -> float:
    """log10 gain backwards from op ``b`` to op ``a``, with the corrections of this module."""
    before, after = _level(graph, a), _level(graph, b)
    return 0.0 if before == after else before - after + _lost_to_averaging(graph, b)


def _level(graph: OpGraph, order: int) -> float:
    """log10 of the gradient's norm, in units of the tensor's own size where that is arbitrary."""
    return _log10_norm(graph.gradients[order]) + _size(graph, order)


def _size(graph: OpGraph, order: int) -> float:
    """log10 of a tensor's RMS where that is arbitrary, else 0."""
    activation = graph.activations.get(order)
    if not graph.scale_is_free[order] or activation is None or activation.stats is None:
        return 0.0
    size = activation.stats.log10_rms
    return size if math.isfinite(size) else 0.0


def _lost_to_averaging(graph: OpGraph, order: int) -> float:
    """Decades that an average over k entries takes by its shape alone: log10 √k."""
    row = graph.gradients[order]
    if row.site.op not in ops.AVERAGES or row.stats is None or len(row.inputs) != 1:
        return 0.0
    source = graph.gradients.get(row.inputs[0])
    if source is None or source.stats is None or not row.stats.count:
        return 0.0
    return 0.5 * math.log10(max(source.stats.count / row.stats.count, 1.0))


def _log10_norm(row: Row) -> float:
    return row.stats.log10_norm if row.stats is not None else -math.inf
