"""diagnose: apply the rules to a Flow or to a run, and sort what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from evenflow.diagnose.finding import CauseName, Diagnosis, Finding, Severity, Skipped
from evenflow.diagnose.registry import select_rules
from evenflow.diagnose.rule import CannotJudgeError, Rule, RunRule
from evenflow.flow import Run

if TYPE_CHECKING:
    from evenflow.flow import Flow

_WORST_FIRST = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def diagnose(
    flow: Flow | Run,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    first: Mapping[str, Flow] | None = None,
) -> Diagnosis:
    """Say what is wrong with a step, or with a whole training run.

    Args:
        flow: A Flow, predicted or measured; or a run, as :func:`evenflow.watch`
            records and :func:`evenflow.open_run` opens it. Of a run, rules for
            single steps look at some of its steps, rules for runs at all of them.
        select: Rules to apply: codes (``EF101``), beginnings of codes (``EF1``)
            or names (``vanishing_gradient``); all by default.
        ignore: Rules to leave out, likewise.
        first: Of a run, its first batch measured op by op, by the role whose loss it is. It
            tells rules for runs what a run does not hold: time steps and targets.

    Returns:
        Findings, worst first and in forward order within a severity, and the
        rules that could not judge. A rule that fails counts among these.

    Raises:
        EvenflowError: ``select`` or ``ignore`` names no rule.
    """
    chosen = select_rules(select, ignore)
    if isinstance(flow, Run):
        return apply_to_run(chosen, flow, first)
    return apply((rule for rule in chosen if not isinstance(rule, RunRule)), flow)


def apply(chosen: Iterable[Rule], flow: Flow) -> Diagnosis:
    """What some rules say of a Flow; see :func:`diagnose`."""
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    if abstains := flow.metadata.get("abstains"):
        why = f"the prediction abstains, so measure a batch instead. {abstains[0]}"
        return Diagnosis(skipped=tuple(Skipped(rule.code, why) for rule in chosen))
    for rule in chosen:
        try:
            findings.extend(rule.check(flow))
        except CannotJudgeError as reason:
            skipped.append(Skipped(rule.code, str(reason)))
        except Exception as error:  # one broken rule must not cost the others' findings
            skipped.append(_failed(rule, error))
    return _sorted(findings, skipped, flow)


def apply_to_run(chosen: Sequence[Rule], run: Run, first: Mapping[str, Flow] | None = None) -> Diagnosis:
    """What some rules say of a run; see :func:`diagnose`."""
    from evenflow.diagnose.history import History
    from evenflow.diagnose.over_steps import check_steps

    history = History(run, first)
    findings, skipped = check_steps([rule for rule in chosen if not isinstance(rule, RunRule)], history)
    for rule in chosen:
        if isinstance(rule, RunRule):
            try:
                findings.extend(rule.check_run(history))
            except CannotJudgeError as reason:
                skipped.append(Skipped(rule.code, str(reason)))
            except Exception as error:  # as above
                skipped.append(_failed(rule, error))
    findings.sort(key=lambda f: bool(f.causes) and f.causes[0].name is CauseName.UNKNOWN)  # explained first
    return _sorted(findings, skipped, None)


def _failed(rule: Rule, error: Exception) -> Skipped:
    return Skipped(rule.code, f"the rule failed ({type(error).__name__}: {error}); please report it")


def _sorted(findings: list[Finding], skipped: list[Skipped], flow: Flow | None) -> Diagnosis:
    position = {} if flow is None else _positions(flow)
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
