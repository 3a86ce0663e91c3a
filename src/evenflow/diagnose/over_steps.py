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
from evenflow.diagnose.limits import LARGE_UPDATE, LEAP, OFF_SCALE
from evenflow.diagnose.ops import NORMS
from evenflow.diagnose.rule import CannotJudgeError, Rule
from evenflow.diagnose.text import percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

LOOKS = 5
"""Steps that are looked at: the first, the last and three between them, as quartiles are (a judgement)."""

BY_ADDING_UP = 0.6
"""Confidence that the learning rate is to blame for what many moderate steps did (a judgement: more likely
than not, for nothing but steps changes weights; less than where a single one is seen to be too large)."""

GROWN_BY_STEPS = 0.4
"""Confidence that a normalisation was missing where single large steps made the weights grow (a judgement:
less than even, for it would have hidden what the steps did, and the steps did it)."""

_HARMLESS_IF_LEARNING = frozenset(
    {Symptom.VANISHING_GRADIENT, Symptom.EXPLODING_GRADIENT, Symptom.DEAD_UNITS, Symptom.SATURATION}
)

_OF_THE_BEGINNING = frozenset(
    {
        CauseName.INIT_TOO_LARGE,
        CauseName.INIT_TOO_SMALL,
        CauseName.ZERO_INIT_SYMMETRY,
    }
)
"""What is there at the first step or never."""


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
            yield from (found if self.at(steps[0]) else (_made_in_training(one) for one in found))
            return
        *_, last = (self.at(step) for step in steps)
        if not any(finding.severity.is_alarm for finding in last):
            yield from last
            yield from self._passed(steps, last)
            return
        if len(steps) > 1 and not self.alarms(steps[-2]):
            return
        began = self._began(steps)
        for finding in last:
            yield self._told(finding, began, steps)

    def _passed(self, steps: list[int], last: list[Finding]) -> Iterator[Finding]:
        """What was an alarm at the first step and is none at the last two of a run that learns: a note."""
        if (
            not self.history.has_learned
            or len(steps) < 2
            or self.alarms(steps[-2])
            or not self.alarms(steps[0])
        ):
            return
        known = {finding.site for finding in last}
        text = f"It has passed: it was so at step {steps[0]}, and is not at step {steps[-1]}."
        for finding in self.at(steps[0]):
            if finding.severity.is_alarm and finding.site not in known:
                evidence = (*finding.evidence, Evidence(text, float(steps[-1])))
                yield replace(finding, severity=Severity.NOTE, evidence=evidence, passed=True)

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

    def _is_normalised(self, step: int) -> bool:
        """Whether any op of a step is a normalisation."""
        return any(row.site.op in NORMS for row in self.history.flow_in_ops(step))

    def _reads_large(self) -> bool:
        """Whether inputs were about as large at the first step; later, weights that follow them deceive."""
        from evenflow.diagnose.suspects import input_size

        size = input_size(self.history)
        return size is not None and size * LEAP.value >= OFF_SCALE.value

    def _told(self, finding: Finding, began: int | None, steps: list[int]) -> Finding:
        """The finding of the last step, with its history."""
        evidence = [*finding.evidence]
        causes = finding.causes
        if began is None:
            if len(steps) > 1:
                evidence.append(Evidence(f"It is so from the first step seen to the last, {steps[-1]}."))
        else:
            evidence.append(Evidence(f"It began in training: it is so since step {began}.", float(began)))
            causes = _made_in_training(finding, self._is_normalised(steps[-1])).causes
            if not self._reads_large():
                causes = tuple(cause for cause in causes if cause.name is not CauseName.UNSCALED_INPUT)
            causes = _blame_step(self.history, began, causes)
        severity = finding.severity
        harmless = finding.symptom in _HARMLESS_IF_LEARNING and severity is Severity.WARNING
        if harmless and self.history.has_learned:
            severity = Severity.NOTE
            evidence.append(
                Evidence("Training learns in spite of it: the loss has fallen by more than half.")
            )
        return replace(finding, severity=severity, evidence=tuple(evidence), causes=causes)


def _made_in_training(finding: Finding, normalised: bool = True) -> Finding:
    """What the first step does not have is no matter of the initial weights.

    Weights that grew do harm only where no normalisation takes their size away.
    """

    def renamed(cause: Cause) -> Cause:
        if cause.name not in _OF_THE_BEGINNING:
            return cause
        grown = cause.name is CauseName.INIT_TOO_LARGE and not normalised
        text = f"{cause.evidence} They grew to that in training, and no normalisation takes their size away."
        if grown:
            return replace(cause, name=CauseName.MISSING_NORMALIZATION, evidence=text)
        return replace(cause, name=CauseName.UNKNOWN)

    return replace(finding, causes=tuple(map(renamed, finding.causes)))


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
    """The learning rate first, for what a large step has done, or many where nothing else explains it."""
    largest = history.largest_update_ratio(before=began)
    if largest is not None and largest >= LARGE_UPDATE.value:
        text = f"Before step {began} single updates were as large as {percent(largest)} of their weights."
        return (Cause(CauseName.LEARNING_RATE_TOO_HIGH, 1.0, text), *map(_hidden_by_norm, causes))
    together = history.updates_together(before=began)
    explained = causes and causes[0].name is not CauseName.UNKNOWN
    if explained or together is None or together < LARGE_UPDATE.value:
        return causes
    text = (
        f"It was not so at first; up to step {began} updates added up to {percent(together)} of the weights."
    )
    return (Cause(CauseName.LEARNING_RATE_TOO_HIGH, BY_ADDING_UP, text), *causes)


def _hidden_by_norm(cause: Cause) -> Cause:
    """A normalisation that is missing, as what would have hidden the fault and not as the fault itself."""
    if cause.name is not CauseName.MISSING_NORMALIZATION:
        return cause
    return replace(cause, confidence=min(cause.confidence, GROWN_BY_STEPS))
