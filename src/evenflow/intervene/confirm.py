"""confirm: test the causes that a diagnosis suspects, one after another.

Each suspect is removed in a copy (:mod:`evenflow.intervene.removal`), and the finding's
own figure is read again (:mod:`evenflow.intervene.figure`). It is a but-for test: a cause
is one if without it the ill is not there. Several causes may pass it, for a chain of
thirty sigmoids needs both the sigmoids and the thirty.

References:
    Pearl, Causality, 2nd edition 2009, sections 7.1 (interventions) and 10.1 (but-for causes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import final

from evenflow.diagnose import Cause, CauseName, Diagnosis, Finding, Trial, Verdict
from evenflow.diagnose.finding import ranked
from evenflow.diagnose.glossary import remedies
from evenflow.errors import EvenflowError
from evenflow.flow import Flow
from evenflow.intervene.figure import ITSELF, Comparison, compare, shown_by
from evenflow.intervene.removal import HELP_ALWAYS, ON_OPTIMIZER, REMOVE, Removal, removals
from evenflow.intervene.subject import FirstBatch, Subject
from evenflow.intervene.training import FEWEST, Course, compare_courses, train
from evenflow.surgery import PatchError

SECONDS = 5.0
"""What testing causes may take, unless told otherwise: as much as watching may add."""
MOST = 0.5
"""Share of the ill that must be gone for its suspect to be confirmed: the larger part (a judgement)."""
LITTLE = 0.1
"""Share below which a suspect is refuted: a tenth of an alarm's decades is within one draw of weights."""
OVERDONE = 1.5
"""Share above which the change has brought the opposite ill, and tells nothing."""

Track = Callable[[str, int, int], None]
"""Is told what is tested, how many tests are done and how many there are in all."""


def confirm(
    diagnosis: Diagnosis,
    subject: Subject,
    *,
    seconds: float = SECONDS,
    batch_seconds: float = 0.0,
    track: Track | None = None,
) -> Diagnosis:
    """Test the causes of all alarms, cheap tests first, and rank causes by what came of it.

    Args:
        diagnosis: What the rules said.
        subject: The model with its batch, or the program; left as it is.
        seconds: What all tests may take by the clock: none begins that would probably last longer.
        batch_seconds: What measuring the batch took, which tells how long the first test will take.
        track: Is told how far it is.

    Returns:
        The same findings. Each cause of an alarm has a :class:`~evenflow.diagnose.Trial`;
        confirmed causes come first, refuted ones last.
    """
    return _Bench(diagnosis, subject, seconds, batch_seconds, track or (lambda *_: None)).run()


@final
class _Bench:
    """One series of tests; trials by finding and cause are in its attributes."""

    def __init__(
        self, diagnosis: Diagnosis, subject: Subject, seconds: float, batch_seconds: float, track: Track
    ) -> None:
        self.findings, self.subject, self.track = diagnosis.findings, subject, track
        self.diagnosis, self.seconds, self.until = diagnosis, seconds, perf_counter() + seconds
        self.one_batch = batch_seconds
        self.trials: dict[tuple[Finding, CauseName], Trial] = {}
        self.control: Course | None = None

    def run(self) -> Diagnosis:
        """All tests: those on one batch first, then those that train."""
        on_batch, in_training = self._tests()
        total = len(on_batch) + len(in_training)
        for done, (cause, shown) in enumerate(on_batch.items()):
            self.track(_words(cause), done, total)
            self._guarded(cause, list(shown), partial(self._measured, cause, shown))
        for done, (cause, findings) in enumerate(in_training.items()):
            self.track(_words(cause), len(on_batch) + done, total)
            self._guarded(cause, findings, partial(self._trained, cause, findings, len(in_training) - done))
        self.track("", total, total)
        return replace(self.diagnosis, findings=tuple(map(self._told, self.findings)))

    def _tests(self) -> tuple[dict[CauseName, dict[Finding, str]], dict[CauseName, list[Finding]]]:
        """By cause: findings that the first batch shows, with its role; and those that training shows."""
        on_batch: dict[CauseName, dict[Finding, str]] = {}
        in_training: dict[CauseName, list[Finding]] = {}
        for finding in self.findings:
            if not finding.severity.is_alarm:
                continue
            role = None if finding.code in ITSELF else shown_by(finding, self.subject.flows)
            for cause in finding.causes:
                if cause.name is CauseName.UNKNOWN:
                    continue
                if role is not None and cause.name not in ON_OPTIMIZER:
                    on_batch.setdefault(cause.name, {})[finding] = role
                else:
                    in_training.setdefault(cause.name, []).append(finding)
        return on_batch, in_training

    def _guarded(
        self, cause: CauseName, findings: list[Finding], test: Callable[[], dict[Finding, Trial] | Trial]
    ) -> None:
        """Keep what a test says of each finding; what hinders it is told, and is nobody's trouble."""
        said: dict[Finding, Trial] | Trial
        if cause not in REMOVE:
            said = _untested("nothing removes it in a copy")
        elif perf_counter() > self.until:
            said = _untested(f"the {self.seconds:g} s for testing causes were over")
        elif self.one_batch > self._left:
            left = f"{self._left:.2g} s are left of the {self.seconds:g} s for testing causes"
            said = _untested(f"one batch takes {self.one_batch:.2g} s, and {left}")
        else:
            try:
                said = test()
            except EvenflowError as error:
                said = _untested(str(error).rstrip("."))
            except Exception as error:  # a copy that fails must not cost the diagnosis
                said = _untested(f"the copy failed ({type(error).__name__}: {error})")
        for finding in findings:
            self.trials[finding, cause] = said[finding] if isinstance(said, dict) else said

    def _measured(self, cause: CauseName, shown: Mapping[Finding, str]) -> dict[Finding, Trial]:
        """One batch through a copy without the cause, read for each finding."""
        removal, after = self._removed(cause, ())
        return {
            finding: _trial(removal, compare(finding, self.subject.flows[role], after[role]))
            for finding, role in shown.items()
        }

    def _trained(self, cause: CauseName, findings: Sequence[Finding], arms: int) -> Trial:
        """A short training without the cause, beside one as it is.

        Args:
            cause: What is removed.
            findings: Which name it.
            arms: How many trainings share the time that is left.
        """
        if not isinstance(self.subject, FirstBatch):
            return _untested("whether it does harm shows in training only; give check a Program")
        program, seed = self.subject.program, self.subject.seed
        if isinstance(program.loss, Mapping):
            return _untested("the losses of several roles do not tell how well training goes")
        removal, _ = self._removed(cause, [one for one in findings if one.code in ITSELF])
        if self.control is None:
            self.control = train(program, seed, self._left / (arms + 1))
        steps = len(self.control.losses)
        if steps < FEWEST and all(map(math.isfinite, self.control.losses)):
            return _untested(f"{FEWEST} steps of training take longer than the {self.seconds:g} s for tests")
        course = train(removal.program(program), seed, self._left / arms, steps)
        return _trial(removal, compare_courses(self.control, course))

    def _removed(self, cause: CauseName, itself: Sequence[Finding]) -> tuple[Removal, Mapping[str, Flow]]:
        """The first change that takes, and the first batch through the copy.

        Args:
            cause: What is removed.
            itself: Findings that must be silent without it.

        Raises:
            PatchError: No change fits, or none removes it.
        """
        misfit: PatchError | None = None
        for removal in removals(cause, self.subject):
            try:
                began = perf_counter()
                after = self.subject.measured(removal.patch)
                self.one_batch = perf_counter() - began
            except PatchError as error:
                misfit = misfit or error
                continue
            if all(map(removal.took, after.values())) and not any(
                shown_by(one, after) is not None for one in itself
            ):
                return removal, after
        raise misfit or PatchError("what would remove it leaves it where it is in this model")

    @property
    def _left(self) -> float:
        return max(0.0, self.until - perf_counter())

    def _told(self, finding: Finding) -> Finding:
        """The finding with its trials, its causes ranked by them, and the remedies of those that remain."""
        tried = _doubted([self._tried(finding, cause) for cause in finding.causes])
        if all(cause.trial is None for cause in tried):
            return finding
        causes = ranked(tried)
        left = [cause for cause in causes if cause.confirmed is not False]
        own = finding.remedies == remedies(finding.causes)
        return replace(finding, causes=causes, remedies=remedies(left) if own else finding.remedies)

    def _tried(self, finding: Finding, cause: Cause) -> Cause:
        trial = self.trials.get((finding, cause.name))
        return cause if trial is None else replace(cause, confirmed=trial.confirmed, trial=trial)


def _doubted(causes: Sequence[Cause]) -> list[Cause]:
    """A cure that helps against everything proves nothing beside a better suspect that is confirmed, too."""
    best = max((one.confidence for one in causes if one.confirmed), default=0.0)
    return [_doubt(one) if one.confirmed and one.confidence < best else one for one in causes]


def _doubt(cause: Cause) -> Cause:
    if cause.name not in HELP_ALWAYS or cause.trial is None:
        return cause
    outcome = f"{cause.trial.outcome} But that helps whatever the layers do."
    trial = replace(cause.trial, verdict=Verdict.INCONCLUSIVE, outcome=outcome)
    return replace(cause, confirmed=None, trial=trial)


def _trial(removal: Removal, seen: Comparison) -> Trial:
    """The verdict on a suspect from what became of the figure without it."""
    if seen.gone is None or math.isnan(seen.gone) or seen.gone > OVERDONE:
        verdict = Verdict.INCONCLUSIVE
    elif seen.gone >= MOST:
        verdict = Verdict.CONFIRMED
    else:
        verdict = Verdict.REFUTED if seen.gone <= LITTLE else Verdict.INCONCLUSIVE
    return Trial(verdict, f"{removal.words} {seen.told}.", seen.before, seen.after)


def _untested(why: str) -> Trial:
    return Trial(Verdict.UNTESTED, f"Not tested: {why}.")


def _words(cause: CauseName) -> str:
    return cause.replace("_", " ")
