"""What a rule says: a symptom at a place, with causes, evidence and remedies.

A Finding is data. It is complete without the Flow that it was read from, so it
can be stored, compared and rendered anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters; ``warning`` and above count as an alarm."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def is_alarm(self) -> bool:
        """Whether a run with such a finding is called unhealthy."""
        return self is not Severity.NOTE


class Symptom(StrEnum):
    """What goes wrong, as the user meets it."""

    VANISHING_GRADIENT = "vanishing_gradient"
    EXPLODING_GRADIENT = "exploding_gradient"
    DEAD_UNITS = "dead_units"
    SATURATION = "saturation"
    NON_FINITE = "non_finite"
    LOSS_NOT_DECREASING = "loss_not_decreasing"
    OSCILLATING = "oscillating"


class CauseName(StrEnum):
    """Why it goes wrong."""

    SATURATING_ACTIVATION = "saturating_activation"
    INIT_TOO_SMALL = "init_too_small"
    INIT_TOO_LARGE = "init_too_large"
    ZERO_INIT_SYMMETRY = "zero_init_symmetry"
    DEPTH_WITHOUT_SKIP = "depth_without_skip"
    MISSING_NORMALIZATION = "missing_normalization"
    NORMALIZATION_EXPLOSION = "normalization_explosion"
    DEAD_RELU = "dead_relu"
    LONG_RECURRENCE = "long_recurrence"
    RECURRENT_GAIN_TOO_LARGE = "recurrent_gain_too_large"
    DISCRIMINATOR_SATURATION = "discriminator_saturation"
    POST_LN_DEPTH = "post_ln_depth"
    RESIDUAL_GROWTH = "residual_growth"
    ATTENTION_COLLAPSE = "attention_collapse"
    WRONG_LOSS_OR_OUTPUT = "wrong_loss_or_output"
    UNSCALED_INPUT = "unscaled_input"
    UNSCALED_TARGET = "unscaled_target"
    LEARNING_RATE_TOO_HIGH = "learning_rate_too_high"
    LEARNING_RATE_TOO_LOW = "learning_rate_too_low"
    FROZEN_OR_DETACHED = "frozen_or_detached"
    PRECISION_UNDERFLOW = "precision_underflow"
    PRECISION_OVERFLOW = "precision_overflow"
    UPDATE_LOST_TO_ROUNDING = "update_lost_to_rounding"
    CLIPPING_ALWAYS_ACTIVE = "clipping_always_active"
    OPTIMIZER_EPSILON_DOMINATES = "optimizer_epsilon_dominates"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured fact behind a finding.

    Attributes:
        text: The fact in one short sentence, numbers included.
        value: The number compared.
        threshold: What it was compared with.
    """

    text: str
    value: float | None = None
    threshold: float | None = None


class Verdict(StrEnum):
    """What became of a suspect when it was removed in a copy."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    UNTESTED = "not tested"


@dataclass(frozen=True, slots=True)
class Trial:
    """A suspect removed in a copy, and the copy measured again.

    Attributes:
        verdict: What follows.
        outcome: What was done and what came of it, with numbers, in one sentence; or why nothing was done.
        before: The figure of the finding as it is; None if there is none.
        after: The same without the suspect.
    """

    verdict: Verdict
    outcome: str
    before: float | None = None
    after: float | None = None

    @property
    def confirmed(self) -> bool | None:
        """True, False, or None where it is open."""
        return {Verdict.CONFIRMED: True, Verdict.REFUTED: False}.get(self.verdict)


@dataclass(frozen=True, slots=True)
class Cause:
    """A suspected or confirmed reason.

    Attributes:
        name: From the fixed vocabulary.
        confidence: From 0 to 1: the share of the symptom that the cause explains by the numbers at hand.
        evidence: Why it is suspected.
        confirmed: True or False after an intervention; None if none was made, or none that decides.
        trial: The intervention; None if nobody asked for one.
    """

    name: CauseName
    confidence: float
    evidence: str
    confirmed: bool | None = None
    trial: Trial | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One symptom at one place.

    Attributes:
        code: The rule's code, e.g. ``EF101``.
        symptom: What goes wrong.
        severity: How much it matters.
        site: Label of the place: a module path, parameter name or op label.
        message: The finding in one sentence.
        source: The user's line, ``"file.py:12"``; None if not known.
        causes: Best first.
        evidence: The facts, most telling first.
        remedies: What to do, most promising first, one short sentence each.
        passed: Whether it was so at the beginning of a run and is no longer.
    """

    code: str
    symptom: Symptom
    severity: Severity
    site: str
    message: str
    source: str | None = None
    causes: tuple[Cause, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    remedies: tuple[str, ...] = ()
    passed: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that could not judge, and why."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that the project accepts, and why."""

    finding: Finding
    reason: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that the rules said, worst first.

    Attributes:
        findings: Sorted by severity, then by forward order.
        skipped: Rules that could not judge.
        suppressed: Findings that the project accepts (:mod:`evenflow.diagnose.policy`).
    """

    findings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    suppressed: tuple[Suppressed, ...] = ()

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings of severity ``warning`` and above."""
        return tuple(finding for finding in self.findings if finding.severity.is_alarm)

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What the alarms name as their causes, each once, most credible first.

        Refuted ones come last. Among the others a cause that may have brought another about
        comes before it (:mod:`evenflow.diagnose.causality`); then the higher confidence, then the
        worse and earlier finding. ``unknown`` is no cause. A confirmed cause leads its finding, and
        counts as much as the best of it; it is not put before causes of other findings, for that
        would tell more of what can be tested than of what is so.
        """
        best: dict[CauseName, tuple[tuple[bool, float], Cause]] = {}
        for finding in self.alarms:
            lead = max((one.confidence for one in finding.causes if one.confirmed is not False), default=0.0)
            for cause in ranked(finding.causes):
                credit = cause.confirmed is not False, lead if cause.confirmed else cause.confidence
                if cause.name is not CauseName.UNKNOWN and (
                    cause.name not in best or credit > best[cause.name][0]
                ):
                    best[cause.name] = credit, cause
        credible = sorted(best.values(), key=lambda entry: entry[0], reverse=True)
        return _upstream_first([cause for _, cause in credible])


def ranked(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """The causes of one finding: confirmed ones first, then untested ones, refuted ones last.

    A probable cause upstream goes even before a confirmed one that it may have brought
    about: whatever link of a chain is taken out, the symptom goes.
    """
    verdicts = {True: 1, None: 0, False: -1}
    return _upstream_first(
        sorted(causes, key=lambda cause: (verdicts[cause.confirmed], cause.confidence), reverse=True)
    )


def _upstream_first(credible: list[Cause]) -> tuple[Cause, ...]:
    """The same with causes upstream moved ahead; refuted ones stay where they are, at the end."""
    from evenflow.diagnose.causality import upstream_first  # it reads this module

    refuted = [cause for cause in credible if cause.confirmed is False]
    return (*upstream_first([cause for cause in credible if cause.confirmed is not False]), *refuted)
