"""diagnose: apply the rules to a Flow and sort what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from evenflow.diagnose.finding import Diagnosis, Finding, Severity, Skipped
from evenflow.diagnose.registry import select_rules
from evenflow.diagnose.rule import CannotJudgeError, Rule

if TYPE_CHECKING:
    from evenflow.flow import Flow

_WORST_FIRST = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def diagnose(flow: Flow, *, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Diagnosis:
    """Say what is wrong with a step.

    Args:
        flow: Predicted or measured.
        select: Rules to apply: codes (``EF101``), beginnings of codes (``EF1``)
            or names (``vanishing_gradient``); all by default.
        ignore: Rules to leave out, likewise.

    Returns:
        Findings, worst first and in forward order within a severity, and the
        rules that could not judge. A rule that fails counts among these.

    Raises:
        EvenflowError: ``select`` or ``ignore`` names no rule.
    """
    chosen = select_rules(select, ignore)
    return apply(chosen, flow)


def apply(chosen: Iterable[Rule], flow: Flow) -> Diagnosis:
    """What some rules say of a Flow; see :func:`diagnose`."""
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    for rule in chosen:
        try:
            findings.extend(rule.check(flow))
        except CannotJudgeError as reason:
            skipped.append(Skipped(rule.code, str(reason)))
        except Exception as error:  # one broken rule must not cost the others' findings
            skipped.append(
                Skipped(rule.code, f"the rule failed ({type(error).__name__}: {error}); please report it")
            )
    position = _positions(flow)
    last = len(position)
    findings.sort(key=lambda f: (_WORST_FIRST.index(f.severity), position.get(f.site, last)))
    return Diagnosis(tuple(findings), tuple(skipped))


def _positions(flow: Flow) -> dict[str, int]:
    """Where in forward order a finding's site stands, by module path, parameter name or op label."""
    position: dict[str, int] = {}
    for row in flow:
        for place in (row.site.path, row.site.label, *(module.path for module in row.output_of)):
            position.setdefault(place, row.order)
    return position
