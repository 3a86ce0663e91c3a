"""Where the gradient becomes exactly zero, and why.

Exact zeros are no small numbers: something multiplied by zero. Weights that
start at zero do so by design in many recipes and open with the first step; two
such layers in a row, a dead layer, a function without slope or an underflow do
not heal by themselves.

References:
    Zhang, Dauphin, Ma, "Fixup Initialization", ICLR 2019; Bachlechner et al.,
    "ReZero is All You Need", UAI 2021 (zeros on purpose).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph
from evenflow.diagnose.text import listing, place, site
from evenflow.diagnose.way import Kind, Step, Way, in_steps
from evenflow.flow import FORMATS, Flow, Role, Row

WITHOUT_SLOPE = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside"})
"""Piecewise constant functions: their derivative is zero wherever it exists."""


@dataclass(frozen=True, slots=True)
class _Reason:
    severity: Severity
    cause: CauseName
    text: str


def findings(code: str, flow: Flow, graph: OpGraph, ways: Iterable[Way]) -> Iterator[Finding]:
    """One finding for each place at which the gradient of some way becomes exactly zero.

    Args:
        code: Of the rule that reports it.
        flow: The Flow.
        graph: Its ops.
        ways: Their ways.
    """
    judge = _Judge(flow, graph)
    seen: set[int] = set()
    for way in ways:
        if way.log10_ratio > -math.inf:
            continue
        steps = in_steps(graph, way).steps
        end = min(i for i, step in enumerate(steps) if _norm(step.output) > -math.inf)
        step, below = steps[end], steps[:end]
        if step.output.order in seen or step.recurrent:  # EF101 judges recurrences along time
            continue
        seen.add(step.output.order)
        reason = judge.reason(step, below, way.first)
        cause = Cause(reason.cause, 1.0, reason.text)
        yield Finding(
            code=code,
            symptom=Symptom.VANISHING_GRADIENT,
            severity=reason.severity,
            site=site(step.output),
            message=f"The gradient ends at {place(step.output)}: below it is exactly zero, down to "
            f"{place(way.first)}.",
            source=step.output.source,
            causes=(cause,),
            evidence=(Evidence(reason.text, 0.0, 0.0),),
            remedies=() if reason.severity is Severity.NOTE else remedies([cause]),
        )


@final
class _Judge:
    """Tells by-design zeros from faults."""

    def __init__(self, flow: Flow, graph: OpGraph) -> None:
        self._graph = graph
        self._zero_parameters = [
            row.site.path
            for row in flow.select(Role.PARAMETER)
            if is_zero(row) and "bias" not in row.site.path.rpartition(".")[2]
        ]
        self._of_module: dict[str, list[str]] = {}
        for name in self._zero_parameters:
            self._of_module.setdefault(name.rpartition(".")[0], []).append(name)

    def reason(self, step: Step, below: Iterable[Step], first: Row) -> _Reason:
        """Why the gradient ends inside ``step``."""
        zeros = self._zero_names(step.rows)
        in_a_row = [other.output for other in below if other.kind is Kind.LINEAR]  # a block has a way around
        more = [name for name in self._zero_names([*in_a_row, first]) if name not in zeros]
        dead = next((row for row in step.rows if self._all_zero_rectifier(row)), None)
        constant = next((row for row in step.rows if row.site.op in WITHOUT_SLOPE), None)
        # Which of its weights an op reads is not known: a module with one that is zero has it at one op.
        both = {row.site.path for row in step.rows} & {row.site.path for row in (*in_a_row, first)}
        if zeros and not more and all(len(self._of_module.get(path, ())) < 2 for path in both):
            return _Reason(
                Severity.NOTE,
                CauseName.ZERO_INIT_SYMMETRY,
                f"{listing(zeros)} is all zeros, as many recipes begin on purpose; "
                "the gradient passes from the second step on.",
            )
        if zeros:
            return _Reason(
                Severity.ERROR,
                CauseName.ZERO_INIT_SYMMETRY,
                f"{listing([*zeros, *more])} are all zeros, one above the other: "
                "no step opens them, or all units of a layer stay equal.",
            )
        if dead is not None and more:
            return _Reason(
                Severity.ERROR,
                CauseName.ZERO_INIT_SYMMETRY,
                f"{listing(more)} is all zeros, so {place(dead)} is zero too, and a rectifier has no "
                "slope there.",
            )
        if dead is not None:
            return _Reason(
                Severity.ERROR, CauseName.DEAD_RELU, f"{place(dead)} is zero for every unit and every sample."
            )
        if constant is not None:
            return _Reason(
                Severity.WARNING,
                CauseName.FROZEN_OR_DETACHED,
                f"{constant.site.op} has slope zero everywhere: it cuts the gradient off like a detach.",
            )
        flat = self._saturated(step.rows)
        if flat is not None:
            return _Reason(
                Severity.WARNING,
                CauseName.SATURATING_ACTIVATION,
                f"{place(flat)} is saturated so far that its slope is rounded to zero.",
            )
        if _underflows(step.output):
            return _Reason(
                Severity.ERROR,
                CauseName.PRECISION_UNDERFLOW,
                f"At {place(step.output)} its RMS is {_rms(step.output):.0e}, "
                f"already below the smallest normal number of {step.output.dtype}.",
            )
        names = listing(list(dict.fromkeys(row.site.op for row in step.rows)))
        return _Reason(Severity.WARNING, CauseName.UNKNOWN, f"{names} passes nothing on at this batch.")

    def _zero_names(self, rows: Iterable[Row]) -> list[str]:
        """Factors of these ops that are all zeros: weights by name, activations by place."""
        found: dict[str, None] = {}
        for row in rows:
            scales = self._graph.is_layer(row) or row.site.op in ("mul", "div") or row.site.op in ops.NORMS
            if scales:
                found.update(dict.fromkeys(self._of_module.get(row.site.path, ())))
            if row.site.op == "mul":
                for source in row.inputs:
                    gate = self._graph.activations.get(source)
                    if gate is not None and is_zero(gate):
                        found[place(gate)] = None
        return list(found)

    def _saturated(self, rows: Iterable[Row]) -> Row | None:
        """A bounded activation among these that is wholly saturated."""
        for row in rows:
            activation = self._graph.activations.get(row.order)
            if (
                row.site.op in ops.SQUASHING_SLOPE
                and activation is not None
                and activation.saturated_fraction == 1.0
            ):
                return row
        return None

    def _all_zero_rectifier(self, row: Row) -> bool:
        activation = self._graph.activations.get(row.order)
        return row.site.op in ops.RECTIFIERS and activation is not None and is_zero(activation)


def is_zero(row: Row) -> bool:
    """Whether all entries are exactly zero."""
    return row.stats is not None and row.stats.count > 0 and row.stats.mean_square == 0.0


def _norm(row: Row) -> float:
    return row.stats.log10_norm if row.stats is not None else -math.inf


def _rms(row: Row) -> float:
    return row.stats.rms if row.stats is not None else 0.0


def _underflows(row: Row) -> bool:
    limits = FORMATS.get(row.dtype)
    return limits is not None and 0.0 < _rms(row) < 2.0**limits.min_normal
