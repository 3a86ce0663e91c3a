"""The finding's own figure, read off a Flow: as it is, and without a suspect.

By depth, that is the gradient's loss or growth between the last layer and the first, in
decades. Of weights that are too small or too large it is the size of the weights'
gradients, which the finding predicts to be off by so many decades. Everything else is
judged by its rule again: the evidence that it compares, or its silence.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenflow.diagnose import Finding, Symptom, diagnose
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.text import number
from evenflow.diagnose.way import ways
from evenflow.flow import Flow, Role

if TYPE_CHECKING:
    from evenflow.diagnose.finding import Evidence

_BY_DEPTH = frozenset({"EF101", "EF102"})
_BY_WEIGHTS = frozenset({"EF301", "EF302"})

ITSELF = frozenset({"EF202", "EF303", "EF501", "EF502", "EF503", "EF504", "EF505", "EF506", "EF507"})
"""Rules that find the cause as such, such as a softmax too many: it is there, and without it they are silent.
Whether it does any harm shows in training."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure with and without a suspect.

    Attributes:
        before: As it is; None if it cannot be read.
        after: Without the suspect; None likewise.
        gone: Share of the ill that is gone: 1 all of it, 0 nothing, below 0 it is worse; above 1 it is
            overdone. None: it cannot be said.
        told: The figures in words, as the end of a sentence.
    """

    before: float | None
    after: float | None
    gone: float | None
    told: str


def shown_by(finding: Finding, flows: Mapping[str, Flow]) -> str | None:
    """The role whose first batch shows a finding by itself; None if only later steps do."""
    for role, flow in flows.items():
        if any(one.site == finding.site for one in diagnose(flow, select=[finding.code]).findings):
            return role
    return None


def compare(finding: Finding, before: Flow, after: Flow) -> Comparison:
    """What becomes of a finding's figure.

    Args:
        finding: As it was found.
        before: The Flow that shows it.
        after: The same batch without a suspect.
    """
    if finding.code in _BY_DEPTH:
        sign = -1 if finding.symptom is Symptom.VANISHING_GRADIENT else 1
        was, now = _by_depth(before, sign), _by_depth(after, sign)
        if was is not None and now is not None:
            told = (
                f"the gradient changes by {_power(sign * now)} from the last layer to the first rather than "
                f"by {_power(sign * was)}"
            )
            gone = (was - now) / was if math.isfinite(was) else float(math.isfinite(now))
            return Comparison(sign * was, sign * now, gone, told)
    if finding.code in _BY_WEIGHTS:
        claimed = _first_value(finding)
        was, now = _weight_gradient(before), _weight_gradient(after)
        if claimed is not None and was is not None and now is not None:
            sign = 1 if finding.symptom is Symptom.VANISHING_GRADIENT else -1
            told = f"the median weight's gradient has an RMS of {_power(now)} rather than {_power(was)}"
            return Comparison(was, now, sign * (now - was) / claimed, told)
    return _by_rule(finding, after)


def _by_depth(flow: Flow, sign: int) -> float | None:
    """Decades of the worst way in a direction: of a loss for −1, of a growth for +1; none is 0."""
    try:
        found = [sign * way.certain for way in ways(op_graph(flow)) if not math.isnan(way.certain)]
    except CannotJudgeError:
        return None
    return max(found, default=None, key=lambda decades: decades) if found else None


def _weight_gradient(flow: Flow) -> float | None:
    """log10 RMS of the typical (median) weight matrix's gradient; None if it is zero or unknown."""
    levels = [
        row.stats.log10_rms
        for row in flow.select(Role.PARAMETER_GRADIENT)
        if row.stats is not None and len(row.shape) > 1
    ]
    level = statistics.median(levels) if levels else -math.inf
    return level if math.isfinite(level) else None


def _by_rule(finding: Finding, after: Flow) -> Comparison:
    """The rule's own verdict on the copy."""
    was = _first_evidence(finding)
    diagnosis = diagnose(after, select=[finding.code])
    if diagnosis.skipped:
        return Comparison(None, None, None, f"{finding.code} cannot judge: {diagnosis.skipped[0].reason}")
    alarms = [one for one in diagnosis.findings if one.severity.is_alarm]
    value = None if was is None else was.value
    if not alarms:
        figure = ""
        if was is not None and value is not None and was.threshold is not None:
            figure = f"; its figure was {number(value)} (alarm beyond {number(was.threshold)})"
        return Comparison(value, None, 1.0, f"{finding.code} finds nothing any more{figure}")
    again = next((one for one in alarms if one.site == finding.site), alarms[0])
    now = _first_evidence(again)
    if was is None or now is None or value is None or now.value is None or was.threshold is None:
        return Comparison(value, None, 0.0, f"{finding.code} still finds it")
    beyond = value - was.threshold
    gone = (value - now.value) / beyond if beyond else 0.0
    told = (
        f"the figure of {finding.code} is {number(now.value)} rather than {number(value)} "
        f"(alarm beyond {number(was.threshold)})"
    )
    return Comparison(value, now.value, min(gone, 1.0), told)


def _first_evidence(finding: Finding) -> Evidence | None:
    return next((one for one in finding.evidence if one.value is not None), None)


def _first_value(finding: Finding) -> float | None:
    first = _first_evidence(finding)
    return None if first is None else first.value


def _power(decades: float) -> str:
    return (
        f"10^{decades:.1f}" if math.isfinite(decades) else ("a factor of zero" if decades < 0 else "infinity")
    )
