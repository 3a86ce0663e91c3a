"""EF605: the loss falls as steadily as a clock, and far too slowly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import CHANCE, FLAT, HALVED, PATIENCE, SMALL_UPDATE
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve

SLOW = Threshold(
    0.2,
    "share by which the loss has come down at most, from its start or, if less, from what guessing costs",
    "a judgement: at that pace five such runs are needed",
)
STEADY = Threshold(
    0.25,
    "of the whole fall that the second half of the steps contributes at least",
    "a judgement: half is a straight line, and a curve that levels off has less",
)
SHORTEST = Threshold(
    10.0,
    "losses that it needs at least",
    "a judgement: the size of steps and gradients is known from the first, the level of the loss from some",
)
TO_GO = Threshold(
    10.0,
    "times the steps taken that are still needed at least, at the speed of first order",
    "a judgement: who plans for a tenth of the steps has chosen another learning rate",
)
WASTED = Threshold(
    0.01,
    "of all that the learning rates of a run add up to, that those of its second half come to at most",
    "a judgement: a cosine to zero leaves its second half .18, a straight line .25, a division by ten "
    "at a half and at three quarters .05",
)
ENDED = 0.8
"""Confidence that a schedule which ended early is why the loss got no further (as of steps that are tiny)."""


@final
class LearningRateTooLow(RunRule):
    """Compares the size of updates with what the loss needs."""

    code = "EF605"
    name = "learning_rate_too_low"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Updates are tiny and the loss falls slowly along a straight line."
    causes = (CauseName.LEARNING_RATE_TOO_LOW,)
    thresholds = (SLOW, STEADY, TO_GO, SHORTEST, WASTED, HALVED, PATIENCE, SMALL_UPDATE, FLAT, CHANCE)
    page = Page(
        what="""\
The loss falls at every step by the same small amount. Nothing is wrong with the model:
it would take ten times the steps, or a hundred, to get anywhere.""",
        why="""\
The learning rate was chosen for another optimizer (.001 suits Adam, and is little for
SGD), a schedule has brought it down too early, or gradients are small and the
optimizer does not normalise them.""",
        mathematics="""\
To first order a step u lowers the loss by −⟨g, u⟩ ≤ ‖g‖‖u‖. While curvature plays no
part this is what happens, and doubling the step doubles the gain: a straight line is
the proof that the step could be longer. L/(‖g‖‖u‖) is the least number of steps to
bring a loss L to zero.""",
        detection="""\
All of it must hold: the typical weight matrix changes by less than a ten-thousandth a
step; the loss fell, but by less than a fifth, and the second half of the steps
contributed its part, so that it is no plateau; ten times the steps taken are still
needed at least. In fewer than fifty steps a slow fall cannot be told from none, so there the
size of the steps alone decides, five hundred such steps must be needed, and the learning
rate must not be on its way up. A schedule has come down too early if the learning rates of the
second half add up to less than a hundredth of all, over fifty steps or more, and the loss has
not halved. A classifier that starts well below ln C, or a squared error
that starts below the variance of its targets, is being fine-tuned: tiny steps are its recipe.""",
        remedies="""\
Multiply the learning rate by 10 until updates are about a thousandth of the weights,
or use Adam, whose steps do not depend on the gradient's size.""",
        references=(
            "Smith, Cyclical learning rates for training neural networks, WACV 2017 (the range test).",
            "Ben Braiek, Khomh, Testing feedforward neural networks training programs (TheDeepChecker), "
            "ACM TOSEM 2023.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        from evenflow.diagnose.suspects import is_fine_tuning

        for role in history.learners[:1]:
            curve = history.loss(role, at_least=int(SHORTEST.value))
            if curve.first_unsound is None and not is_fine_tuning(history, role, curve):
                yield from _ended_early(history, role, curve) or _judge(history, role, curve)


def _ended_early(history: History, role: str, curve: LossCurve) -> list[Finding]:
    """Whether the schedule was at its end long before the run was; empty if not."""
    import numpy as np

    rate = history.scalar("lr", role)
    if rate is None or len(curve) < PATIENCE.value or history.gained(curve) >= HALVED.value:
        return []
    known = rate.values[np.isfinite(rate.values)]
    share = float(known[len(known) // 2 :].sum() / known.sum()) if known.sum() > 0.0 else 1.0
    if share >= WASTED.value:
        return []
    text = (
        f"The learning rate fell from {number(float(known.max()))} to {number(float(known[-1]))}, and the "
        f"second half of the steps has {percent(share)} of all that it adds up to."
    )
    cause = Cause(CauseName.LEARNING_RATE_TOO_LOW, ENDED, text)
    return [
        _finding(
            curve,
            f"The schedule ended too early: half of the {len(curve)} steps did nothing, and the loss fell by "
            f"{percent(max(curve.relative_fall, 0.0))}, to {number(curve.end)}.",
            cause,
            Evidence(text, share, WASTED.value),
        )
    ]


def _judge(history: History, role: str, curve: LossCurve) -> Iterator[Finding]:
    from evenflow.diagnose.suspects import steps_too_small

    short = len(curve) < PATIENCE.value
    if not history.gained(curve) < SLOW.value or (short and _warms_up(history, role)):
        return
    if not short and (curve.fall < 0.0 or curve.drift < STEADY.value * curve.fall):
        return
    if not short and curve.relative_fall < FLAT.value and curve.fall < CHANCE.value * curve.error:
        return  # flat: EF601
    cause = steps_too_small(history, role, curve, TO_GO.value)
    if cause is None:
        return
    yield _finding(
        curve,
        f"In {len(curve)} steps the loss fell by {percent(max(curve.relative_fall, 0.0))}, from "
        f"{number(curve.start)} to {number(curve.end)}: the steps are too small.",
        cause,
        Evidence(cause.evidence),
    )


def _finding(curve: LossCurve, message: str, cause: Cause, evidence: Evidence) -> Finding:
    return Finding(
        code=LearningRateTooLow.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=curve.name,
        message=message,
        causes=(cause,),
        evidence=(evidence,),
        remedies=remedies((cause,)),
    )


def _warms_up(history: History, role: str) -> bool:
    """Whether the learning rate ends higher than it began."""
    rate = history.scalar("lr", role)
    return rate is not None and len(rate) > 0 and bool(rate.values[-1] > rate.values[0])
