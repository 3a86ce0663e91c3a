"""The ops that gradient passed: what rules ask of them again and again.

Which ops are layers, what lies above them, which run in a loop, and where the
size of a tensor means nothing because a normalisation takes it away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.once import once
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.flow import LOSS_PATH, Flow, Role, Row
from evenflow.flow.chain import ROOT, between, immediate_dominators

REPEATS = 4
"""Uses of each weight, one after another, from which a module counts as a recurrence (a judgement:
fewer than any useful sequence has steps)."""

SINGLE = 1e-5
"""Relative difference of two sums of float32 that should be equal: 84 units of its roundoff (a judgement)."""

_PRODUCTS = frozenset({"mul", "div", "bmm", "matmul"})
"""Ops that multiply two signals, if both operands are signals."""

_AFFINE = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "expand"})
"""What may lie between an activation and the product that it gates, with a constant as the other operand."""


@once
def op_graph(flow: Flow) -> OpGraph:
    """The graph of a Flow, one for all who ask.

    Raises:
        CannotJudgeError: As :class:`OpGraph`.
    """
    return OpGraph(flow)


@final
class OpGraph:
    """The ops that gradient passed, and which consumed which.

    Args:
        flow: Its rows of activation gradients are read, and the activations beside them.

    Raises:
        CannotJudgeError: The Flow has no activation gradients.

    Attributes:
        gradients: From an op's order to the gradient at its output.
        activations: From an op's order to its output.
        inputs: From an op to those that it consumed.
        consumers: The reverse.
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
        self._weights = _weights(flow)
        self._scalars = {  # modules that may learn a factor
            row.site.path.rpartition(".")[0]
            for row in flow.select(Role.PARAMETER)
            if math.prod(row.shape) == 1
        }
        self._bias_mean_square = {
            row.site.path.removesuffix(".bias"): row.stats.mean_square
            for row in flow.select(Role.PARAMETER)
            if row.site.path.endswith(".bias") and row.stats is not None
        }
        self._replayed = {row.site.path for row in flow.select(Role.ACTIVATION_GRADIENT, time_steps=True)}

    def refuse_non_finite(self) -> None:
        """Stop a rule that compares norms where these are not the whole truth.

        Raises:
            CannotJudgeError: Some gradient is NaN or infinite.
        """
        if any(row.stats is not None and row.stats.nonfinite_count for row in self.gradients.values()):
            raise CannotJudgeError("some gradients are NaN or infinite (see EF701)")

    def refuse_without_spread(self) -> None:
        """Stop a rule that compares samples where the Flow does not.

        Raises:
            CannotJudgeError: Several samples ran, and no row says how much they differ.
        """
        rows = [row for row in self.activations.values() if len(row.shape) > 1 and row.shape[0] > 1]
        if rows and all(row.sample_spread is None for row in rows):
            raise CannotJudgeError("the Flow does not say how much samples differ")

    def sources(self, row: Row) -> list[Row]:
        """The outputs that an op consumed."""
        return [self.activations[order] for order in row.inputs if order in self.activations]

    def is_layer(self, row: Row) -> bool:
        """Whether the op maps by a weight."""
        op = row.site.op
        return op in ops.WEIGHTED or (op in ("bmm", "matmul") and row.site.path in self._weights)

    def weights_at(self, row: Row) -> tuple[Row, ...]:
        """The parameters of two axes or more that the op's module owns."""
        return self._weights.get(row.site.path, ())

    def input_rms(self, layer: Row) -> float | None:
        """RMS of what a layer reads, from its output and its weights; None if it has not just one weight.

        For weights drawn around zero, E (Wx + b)² = fan_in · E W² · E x² + E b².
        """
        output, weights = self.activations.get(layer.order), self.weights_at(layer)
        if output is None or output.stats is None or len(weights) != 1 or weights[0].stats is None:
            return None
        mean_square_gain = math.prod(weights[0].shape[1:]) * weights[0].stats.mean_square
        from_inputs = output.stats.mean_square - self._bias_mean_square.get(layer.site.path, 0.0)
        return math.sqrt(max(from_inputs, 0.0) / mean_square_gain) if mean_square_gain else None

    def is_constant_factor(self, row: Row) -> bool:
        """Whether an op multiplies by one number: largest entry and RMS change alike; a mask's do not."""
        if row.site.op not in ("mul", "div") or len(row.inputs) != 1 or row.site.path in self._scalars:
            return False
        before, after = (self.activations.get(order) for order in (row.inputs[0], row.order))
        crests = [
            row.stats.abs_max / row.stats.rms
            for row in (before, after)
            if row is not None and row.stats is not None and row.stats.abs_max
        ]
        return len(crests) == 2 and math.isclose(*crests, rel_tol=SINGLE)

    def routes(self) -> Iterator[tuple[int, ...]]:
        """For each entry of data the ops that it cannot avoid on its way to the loss, in forward order."""
        for entry, sources in self.inputs.items():
            if not sources:
                yield self.route(entry)

    def route(self, entry: int) -> tuple[int, ...]:
        """The ops that ``entry`` cannot avoid, itself first."""
        route = [entry]
        while (above := self._dominator[route[-1]]) != ROOT:
            route.append(above)
        return tuple(route)

    def is_hidden(self, row: Row) -> bool:
        """Whether a later layer lies above the op."""
        return self._feeds_layer.get(row.order, False)

    def is_gate(self, order: int) -> bool:
        """Whether an output is multiplied with another signal before anything else is done to it.

        What a loss of derivatives multiplies (tanh' is 1 − tanh²) is no signal that a gate lets through.
        """
        consumers = self.consumers.get(order, ())
        if not consumers:
            return False
        derivative = f"{self.gradients[order].site.op}_backward"
        if any(self.gradients[consumer].site.op == derivative for consumer in consumers):
            return False
        for consumer in consumers:
            op, others = self.gradients[consumer].site.op, [o for o in self.inputs[consumer] if o != order]
            if op in _PRODUCTS and any(not self.measures_scale(other) for other in others):
                return True
            if op in _AFFINE and not others and self.is_gate(consumer):
                return True
        return False

    def is_attention(self, row: Row) -> bool:
        """Whether an op weighs values: fused attention, or a softmax that goes into a product of matrices."""
        if row.order not in self.gradients or row.site.path == LOSS_PATH:
            return False
        if row.site.op.startswith("_scaled_dot_product"):
            return True
        return row.site.op in ops.SOFTMAX and len(row.shape) > 2 and self._weighs(row.order)

    def measures_scale(self, order: int) -> bool:
        """Whether an output is a size to divide by: such as a norm or a standard deviation."""
        row = self.gradients.get(order)
        if row is None:
            return False
        return row.site.op in ops.MEASURES_SCALE or (
            row.site.op in ops.KEEPS_KIND
            and bool(row.inputs)
            and all(self.measures_scale(source) for source in row.inputs)
        )

    def leaves_model(self, order: int) -> bool:
        """Whether no layer outside the loss lies above an op."""
        return not self._feeds_layer[order]

    def in_recurrence(self, a: int, b: int) -> bool:
        """Whether the link from op ``a`` to op ``b`` is a part of a recurrence."""
        return any(low <= b <= high or low <= a < high for low, high in self._recurrences)

    @property
    def owners(self) -> frozenset[str]:
        """Modules that own a parameter of two axes or more."""
        return frozenset(self._weights)

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

    @cached_property
    def scale_is_free(self) -> dict[int, bool]:
        """For each op whether a later normalisation takes its output's scale away."""
        free: dict[int, bool] = {}
        for order in sorted(self.inputs, reverse=True):
            consumers = self.consumers[order]
            free[order] = bool(consumers) and all(self._frees(c, order, free) for c in consumers)
        return free

    @cached_property
    def _dominator(self) -> dict[int, int]:
        return immediate_dominators(self.inputs)

    @cached_property
    def _feeds_layer(self) -> dict[int, bool]:
        """For each op whether a layer outside the loss lies above it."""
        feeds: dict[int, bool] = {}
        for order in sorted(self.inputs, reverse=True):
            above = [self.gradients[consumer] for consumer in self.consumers[order]]
            feeds[order] = any(
                feeds[row.order] or (self.is_layer(row) and row.site.path != LOSS_PATH) for row in above
            )
        return feeds

    @cached_property
    def _recurrences(self) -> tuple[tuple[int, int], ...]:
        """First and last op of every recurrence."""
        spans = [(rows[0].order, rows[-1].order) for rows in self.loops.values()]
        for path in self._replayed:
            orders = [order for order, row in self.gradients.items() if row.site.path == path]
            if orders:
                spans.append((min(orders), max(orders)))
        return tuple(spans)

    def _weighs(self, order: int) -> bool:
        """Whether an output goes into a product of matrices, by way of dropout perhaps."""
        for consumer in self.consumers.get(order, ()):
            op = self.gradients[consumer].site.op
            if op in ("bmm", "matmul"):
                return True
            if op in ("native_dropout", "mul", "expand") and self._weighs(consumer):
                return True
        return False

    def _is_series(self, path: str, uses: Sequence[Row]) -> bool:
        """Whether a use in the last turn of a loop depends on one in the first."""
        turn = len(self._weights[path])
        return any(
            between(self.inputs, first.order, last.order) for first in uses[:turn] for last in uses[-turn:]
        )

    def _frees(self, consumer: int, source: int, free: Mapping[int, bool]) -> bool:
        """Whether an op takes away the scale of one of its inputs, or passes it on to one that does."""
        op = self.gradients[consumer].site.op
        if op in ops.NORMS or op in ops.MEASURES_SCALE:
            return True
        others = (other for other in self.inputs[consumer] if other != source)
        if op in ("mul", "div") and any(self.measures_scale(other) for other in others):
            return True
        return op in ops.PASSES_SCALE and free[consumer]


def _weights(flow: Flow) -> dict[str, tuple[Row, ...]]:
    """Module path → its own parameters of two axes or more."""
    found: dict[str, list[Row]] = {}
    for row in flow.select(Role.PARAMETER):
        if len(row.shape) >= 2:
            found.setdefault(row.site.path.rpartition(".")[0], []).append(row)
    return {path: tuple(rows) for path, rows in found.items()}
