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
    Gradients?", NeurIPS 2018, theorem 3 (the spread of one draw, :meth:`Way.chance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.flow import LOSS_PATH, Flow, Role, Row
from evenflow.flow.chain import ROOT, between, immediate_dominators

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
    OTHER = "other"


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
        excess: The same with the corrections of this module, recurrences left out.
    """

    first: Row
    last: Row
    steps: tuple[Step, ...]
    log10_ratio: float
    excess: float

    @property
    def judged(self) -> tuple[Step, ...]:
        """The steps outside of recurrences."""
        return tuple(step for step in self.steps if not step.recurrent)

    @property
    def layers(self) -> int:
        """How many layers the gradient crosses, the last one included; a block counts as one."""
        return sum(step.kind in (Kind.LINEAR, Kind.BLOCK) for step in self.judged)

    @property
    def has_skips(self) -> bool:
        """Whether any step has a second branch around its weights."""
        return any(step.kind is Kind.BLOCK for step in self.steps)

    def chance(self) -> tuple[float, float]:
        """Mean and standard deviation of log10 ‖δ‖ that finite width alone gives a critical network.

        log ‖δ‖² is normal with mean −β/2 and variance β = Σ 5/n over layers of
        width n (the figure of rectifiers, the largest of the usual activations).
        """
        beta = sum(5.0 / width(step.output) for step in self.judged if step.kind is Kind.LINEAR)
        return -beta / 4.0 / _LN10, math.sqrt(beta) / 2.0 / _LN10


def width(row: Row) -> int:
    """Units of a layer: channels of a convolution, else the last axis."""
    if not row.shape:
        return 1
    axis = 1 if "conv" in row.site.op and len(row.shape) > 1 else -1
    return max(row.shape[axis], 1)


@final
class OpGraph:
    """The ops that gradient passed, and which consumed which.

    Args:
        flow: Its rows of activation gradients are read, and the activations beside them.

    Raises:
        CannotJudgeError: The Flow has no activation gradients.
    """

    def __init__(self, flow: Flow) -> None:
        self.gradients = {row.order: row for row in flow.select(Role.ACTIVATION_GRADIENT)}
        self.activations = {row.order: row for row in flow.select(Role.ACTIVATION)}
        if not any(row.stats is not None for row in self.gradients.values()):
            raise CannotJudgeError("the Flow holds no gradients of activations")
        self.inputs = {order: row.inputs for order, row in self.gradients.items()}
        self.consumers: dict[int, list[int]] = {order: [] for order in self.inputs}
        for order, sources in self.inputs.items():
            for source in sources:
                if source in self.consumers:
                    self.consumers[source].append(order)
        self._dominator = immediate_dominators(self.inputs)
        self._weights = _weights(flow)
        self._replayed = {row.site.path for row in flow.select(Role.ACTIVATION_GRADIENT, time_steps=True)}

    def refuse_non_finite(self) -> None:
        """Stop a rule that compares norms where these are not the whole truth.

        Raises:
            CannotJudgeError: Some gradient is NaN or infinite.
        """
        if any(row.stats is not None and row.stats.nonfinite_count for row in self.gradients.values()):
            raise CannotJudgeError("some gradients are NaN or infinite (see EF701)")

    def is_layer(self, row: Row) -> bool:
        """Whether the op maps by a weight of its module, or could."""
        op = row.site.op
        return op in ops.WEIGHTED or (op in ("bmm", "matmul") and bool(self._weights.get(row.site.path)))

    def weights_at(self, row: Row) -> tuple[Row, ...]:
        """The parameters of two axes or more that the op's module owns."""
        return self._weights.get(row.site.path, ())

    def is_hidden(self, row: Row) -> bool:
        """Whether the op's output goes on to a later layer, and not only as a gate."""
        return self._feeds_layer.get(row.order, False) and not self._is_gate(row.order)

    def leaves_model(self, order: int) -> bool:
        """Whether no layer outside the loss lies above an op."""
        return not self._feeds_layer[order]

    def _is_gate(self, order: int) -> bool:
        """Whether an output is multiplied with another signal before anything else is done to it."""
        return any(
            (self.gradients[consumer].site.op in ("mul", "div") and len(self.inputs[consumer]) > 1)
            or (self.gradients[consumer].site.op in _AFFINE and self._is_gate(consumer))
            for consumer in self.consumers.get(order, ())
        )

    @cached_property
    def _feeds_layer(self) -> dict[int, bool]:
        """For each op whether a layer outside the loss lies above it."""
        feeds: dict[int, bool] = {}
        for order in sorted(self.inputs, reverse=True):
            feeds[order] = any(
                feeds[consumer]
                or (
                    self.is_layer(self.gradients[consumer])
                    and self.gradients[consumer].site.path != LOSS_PATH
                )
                for consumer in self.consumers[order]
            )
        return feeds

    def input_rms(self, layer: Row) -> float | None:
        """RMS of what a layer reads, from its output and its weights; None if it has not just one weight.

        For weights drawn around zero, rms(Wx) = √fan_in · rms(W) · rms(x).
        """
        output, weights = self.activations.get(layer.order), self.weights_at(layer)
        if output is None or output.stats is None or len(weights) != 1 or weights[0].stats is None:
            return None
        gain = math.sqrt(math.prod(weights[0].shape[1:])) * weights[0].stats.rms
        return output.stats.rms / gain if gain else None

    def routes(self) -> Iterator[tuple[int, ...]]:
        """For each entry the ops that it cannot avoid, in forward order."""
        for entry, sources in self.inputs.items():
            if not sources:
                route = [entry]
                while (above := self._dominator[route[-1]]) != ROOT:
                    route.append(above)
                yield tuple(route)

    def ways(self) -> Iterator[Way]:
        """The ways of all entries that lead over at least two layers, without their steps.

        Entries that share a first layer share a way.
        """
        seen: set[tuple[int, int]] = set()
        for route in self.routes():
            ends = self._ends(route)
            if ends is None or ends in seen:
                continue
            seen.add(ends)
            yield self._way(ends, route, with_steps=False)

    def in_steps(self, way: Way) -> Way:
        """The same way with its steps filled in."""
        route = tuple(row.order for row in self.on(way))
        return self._way((way.first.order, way.last.order), route, with_steps=True)

    def on(self, way: Way) -> tuple[Row, ...]:
        """The ops of a way, in forward order."""
        route = [way.first.order]
        while route[-1] != way.last.order:
            route.append(self._dominator[route[-1]])
        return tuple(self.gradients[order] for order in route)

    @cached_property
    def scale_is_free(self) -> dict[int, bool]:
        """For each op whether a later normalisation takes its output's scale away."""
        free: dict[int, bool] = {}
        for order in sorted(self.inputs, reverse=True):
            consumers = self.consumers[order]
            free[order] = bool(consumers) and all(self._frees(c, order, free) for c in consumers)
        return free

    def _frees(self, consumer: int, source: int, free: Mapping[int, bool]) -> bool:
        op = self.gradients[consumer].site.op
        if op in ops.NORMS or op in ops.MEASURES_SCALE:
            return True
        if op in ("mul", "div") and any(
            self._is_scale(other) for other in self.inputs[consumer] if other != source
        ):
            return True
        return op in ops.PASSES_SCALE and free[consumer]

    def _is_scale(self, order: int) -> bool:
        row = self.gradients.get(order)
        if row is None:
            return False
        if row.site.op in ops.MEASURES_SCALE:
            return True
        return (
            row.site.op in ops.KEEPS_KIND
            and bool(row.inputs)
            and all(self._is_scale(source) for source in row.inputs)
        )

    def _ends(self, route: tuple[int, ...]) -> tuple[int, int] | None:
        layers = [
            order
            for order in route
            if self.gradients[order].site.path != LOSS_PATH and self.is_layer(self.gradients[order])
        ]
        return (layers[0], layers[-1]) if len(layers) > 1 else None

    def _way(self, ends: tuple[int, int], route: tuple[int, ...], *, with_steps: bool) -> Way:
        first, last = ends
        part = [order for order in route if first <= order <= last]
        head, foot = _log10_norm(self.gradients[last]), _log10_norm(self.gradients[first])
        ratio = 0.0 if head == foot else foot - head
        steps = tuple(self._steps(part)) if with_steps else ()
        excess = math.fsum(self._gain(a, b) for a, b in pairwise(part) if not self._in_recurrence(a, b))
        return Way(self.gradients[first], self.gradients[last], steps, ratio, excess)

    @cached_property
    def loops(self) -> dict[str, tuple[Row, ...]]:
        """Modules that use their weights again and again, each time on the outcome of the last."""
        uses: dict[str, list[Row]] = {}
        for row in self.gradients.values():
            if row.site.path in self._weights and row.site.path not in self._replayed and self.is_layer(row):
                uses.setdefault(row.site.path, []).append(row)
        return {
            path: tuple(rows)
            for path, rows in uses.items()
            if len(rows) >= REPEATS * len(self._weights[path]) and self._is_series(path, rows)
        }

    def _is_series(self, path: str, uses: Sequence[Row]) -> bool:
        """Whether a use in the last turn of a loop depends on one in the first."""
        turn = len(self._weights[path])
        return any(
            between(self.inputs, first.order, last.order) for first in uses[:turn] for last in uses[-turn:]
        )

    @cached_property
    def _recurrences(self) -> tuple[tuple[int, int], ...]:
        """First and last op of every recurrence."""
        spans = [(rows[0].order, rows[-1].order) for rows in self.loops.values()]
        for path in self._replayed:
            orders = [order for order, row in self.gradients.items() if row.site.path == path]
            if orders:
                spans.append((min(orders), max(orders)))
        return tuple(spans)

    def _in_recurrence(self, a: int, b: int) -> bool:
        """Whether the link from op ``a`` to op ``b`` is a part of a recurrence."""
        return any(low <= b <= high or low <= a < high for low, high in self._recurrences)

    def _gain(self, a: int, b: int) -> float:
        """log10 gain backwards from op ``b`` to op ``a``, with the corrections of this module."""
        before, after = self._level(a), self._level(b)
        return 0.0 if before == after else before - after + self._expected_of_shape(b)

    def _level(self, order: int) -> float:
        """log10 of the gradient's norm, in units of the tensor's own size where that is arbitrary."""
        level = _log10_norm(self.gradients[order])
        activation = self.activations.get(order)
        if self.scale_is_free[order] and activation is not None and activation.stats is not None:
            size = activation.stats.log10_rms
            level += size if math.isfinite(size) else 0.0
        return level

    def _expected_of_shape(self, order: int) -> float:
        """What must be added to an average's gain to make it 0 in a healthy network."""
        row = self.gradients[order]
        if row.site.op not in ops.AVERAGES or row.stats is None or len(row.inputs) != 1:
            return 0.0
        source = self.gradients.get(row.inputs[0])
        if source is None or source.stats is None or not row.stats.count:
            return 0.0
        return 0.5 * math.log10(max(source.stats.count / row.stats.count, 1.0))

    def _steps(self, part: list[int]) -> Iterator[Step]:
        pending = 0.0  # log10 of the gain that the next weights are made to have
        for a, b in pairwise(part):
            inside = between(self.inputs, a, b) or (b,)
            rows = tuple(self.gradients[order] for order in inside)
            kind, function = self._kind(rows)
            gain = excess = self._gain(a, b)
            if function and not self.scale_is_free[b]:
                pending = math.log10(ops.BACKWARD_GAIN.get(function, 1.0))
                excess += pending
            elif kind is Kind.LINEAR:
                excess, pending = excess - pending, 0.0
            elif kind in (Kind.NORM, Kind.BLOCK):
                pending = 0.0
            yield Step(rows, kind, function, gain, excess, self._in_recurrence(a, b))

    def _kind(self, rows: tuple[Row, ...]) -> tuple[Kind, str]:
        names = [row.site.op for row in rows]
        layers = sum(self.is_layer(row) for row in rows)
        if len(rows) > 1:
            if names == ["abs", "add", "div"]:
                return Kind.SQUASHING, "softsign"
            if layers:
                return Kind.BLOCK, ""
            return (Kind.NORM if any(op in ops.MEASURES_SCALE for op in names) else Kind.OTHER), ""
        op = names[0]
        if layers:
            return Kind.LINEAR, ""
        for kind, family in (
            (Kind.SQUASHING, ops.SQUASHING_SLOPE),
            (Kind.RECTIFIER, ops.RECTIFIERS),
            (Kind.SMOOTH, ops.SMOOTH),
        ):
            if op in family:
                return kind, op
        return (Kind.NORM if op in ops.NORMS else Kind.OTHER), ""


_AFFINE = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "expand"})
"""What may lie between an activation and the product that it gates."""

REPEATS = 4
"""Uses of each weight, one after another, from which a module counts as a recurrence (a judgement:
fewer than any useful sequence has steps)."""


def _weights(flow: Flow) -> dict[str, tuple[Row, ...]]:
    """Module path → its own parameters of two axes or more."""
    found: dict[str, list[Row]] = {}
    for row in flow.select(Role.PARAMETER):
        if len(row.shape) >= 2:
            found.setdefault(row.site.path.rpartition(".")[0], []).append(row)
    return {path: tuple(rows) for path, rows in found.items()}


def _log10_norm(row: Row) -> float:
    return row.stats.log10_norm if row.stats is not None else -math.inf
