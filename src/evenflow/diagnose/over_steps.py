"""Rules for single steps, asked at several steps of a run.

What is wrong at one step may have passed by the next, so a finding counts when it
is there at the last two of the steps that are looked at. Where it was not there
from the beginning, the step at which it began is found by halving. Training that
does well in spite of it is not alarmed about, unless nothing can get through at all (an error).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Skipped, Symptom
from evenflow.diagnose.limits import LARGE_UPDATE
from evenflow.diagnose.rule import CannotJudgeError, Rule
from evenflow.diagnose.text import percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

LOOKS = 5
"""Steps that are looked at: the first, the last and three between them, as quartiles are (a judgement)."""

_HARMLESS_IF_LEARNING = frozenset(
    {Symptom.VANISHING_GRADIENT, Symptom.EXPLODING_GRADIENT, Symptom.DEAD_UNITS, Symptom.SATURATION}
)

_OF_INITIAL_WEIGHTS = frozenset(
    {CauseName.INIT_TOO_LARGE, CauseName.INIT_TOO_SMALL, CauseName.ZERO_INIT_SYMMETRY}
)


def check_steps(rules: Iterable[Rule], history: History) -> tuple[list[Finding], list[Skipped]]:
    """What rules for single steps say of a run."""
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    steps = _looked_at(history)
    for rule in rules:
        try:
            findings += _Check(rule, history).over(steps)
        except CannotJudgeError as reason:
            skipped.append(Skipped(rule.code, str(reason)))
        except Exception as error:  # one broken rule must not cost the others' findings
            text = f"the rule failed ({type(error).__name__}: {error}); please report it"
            skipped.append(Skipped(rule.code, text))
    return findings, skipped


class _Check:
    """One rule at one step after another."""

    def __init__(self, rule: Rule, history: History) -> None:
        self.rule = rule
        self.history = history
        self._said: dict[int, list[Finding] | CannotJudgeError] = {}

    def at(self, step: int) -> list[Finding]:
        """What the rule says of a step."""
        if step not in self._said:
            try:
                self._said[step] = list(self.rule.check(self.history.flow_in_ops(step)))
            except CannotJudgeError as reason:
                self._said[step] = reason
        said = self._said[step]
        if isinstance(said, CannotJudgeError):
            raise said
        return said

    def alarms(self, step: int) -> bool:
        """Whether it alarms at a step; not where it cannot judge."""
        try:
            return any(finding.severity.is_alarm for finding in self.at(step))
        except CannotJudgeError:
            return False

    def over(self, steps: list[int]) -> Iterator[Finding]:
        """What it says of the run."""
        if not steps:
            raise CannotJudgeError("no step of the run was sampled")
        if self.rule.symptom is Symptom.NON_FINITE:
            found = next((found for step in steps if (found := self.at(step))), [])
            yield from (found if self.at(steps[0]) else map(_made_in_training, found))
            return
        *_, last = (self.at(step) for step in steps)
        if not any(finding.severity.is_alarm for finding in last):
            yield from last
            return
        if len(steps) > 1 and not self.alarms(steps[-2]):
            return
        began = self._began(steps)
        for finding in last:
            yield self._told(finding, began, steps)

    def _began(self, steps: list[int]) -> int | None:
        """The first step of the alarm; None if it was there from the beginning."""
        healthy = [step for step in steps if not self.alarms(step)]
        if not healthy:
            return None
        every = self.history.steps.tolist()
        low, high = every.index(healthy[-1]), every.index(next(s for s in steps if s > healthy[-1]))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.alarms(every[middle]) else (middle, high)
        return int(every[high])

    def _told(self, finding: Finding, began: int | None, steps: list[int]) -> Finding:
        """The finding of the last step, with its history."""
        evidence = [*finding.evidence]
        causes = finding.causes
        if began is None:
            if len(steps) > 1:
                evidence.append(Evidence(f"It is so from the first step seen to the last, {steps[-1]}."))
        else:
            evidence.append(Evidence(f"It began in training: it is so since step {began}.", float(began)))
            causes = _made_in_training(finding).causes
            if finding.symptom in (Symptom.DEAD_UNITS, Symptom.SATURATION):
                causes = _blame_step(self.history, began, causes)
        severity = finding.severity
        harmless = finding.symptom in _HARMLESS_IF_LEARNING and severity is Severity.WARNING
        if harmless and self.history.has_learned:
            severity = Severity.NOTE
            evidence.append(
                Evidence("Training learns in spite of it: the loss has fallen by more than half.")
            )
        return replace(finding, severity=severity, evidence=tuple(evidence), causes=causes)


def _made_in_training(finding: Finding) -> Finding:
    """What the first step does not have is no matter of the initial weights."""
    causes = tuple(
        replace(cause, name=CauseName.UNKNOWN) if cause.name in _OF_INITIAL_WEIGHTS else cause
        for cause in finding.causes
    )
    return replace(finding, causes=causes)


def _looked_at(history: History) -> list[int]:
    """The steps to look at; for a run that breaks the first broken one and none after it."""
    steps: list[int] = history.steps.tolist()
    broken = history.first_broken
    if broken is not None:
        steps = [step for step in steps if step <= broken]
    count = min(LOOKS, len(steps))
    chosen = {round(i * (len(steps) - 1) / max(count - 1, 1)) for i in range(count)}
    return [steps[i] for i in sorted(chosen)]


def _blame_step(history: History, began: int, causes: tuple[Cause, ...]) -> tuple[Cause, ...]:
    """The learning rate first, if the updates before the change were large against the weights."""
    largest = history.largest_update_ratio(before=began)
    if largest is None or largest < LARGE_UPDATE.value:
        return causes
    text = f"Before step {began} single updates were as large as {percent(largest)} of their weights."
    return (Cause(CauseName.LEARNING_RATE_TOO_HIGH, 1.0, text), *causes)
