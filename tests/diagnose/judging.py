"""From a program to what one rule says of it."""

from __future__ import annotations

from evenflow.diagnose import CauseName, Diagnosis, Finding, diagnose
from evenflow.measure import measure
from tests.diagnose.programs import Program


def judge(program: Program, rule: str) -> Diagnosis:
    """What one rule says."""
    return diagnose(measure(program.model, program.inputs, program.loss), select=rule)


def only(program: Program, rule: str) -> Finding:
    """The one finding of a rule that must not be skipped."""
    diagnosis = judge(program, rule)
    assert diagnosis.skipped == ()
    (finding,) = diagnosis.findings
    return finding


def silent(program: Program, rule: str) -> bool:
    """Whether a rule judged and found nothing."""
    return judge(program, rule) == Diagnosis()


def top(finding: Finding) -> CauseName:
    """The first cause."""
    return finding.causes[0].name
