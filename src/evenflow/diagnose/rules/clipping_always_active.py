"""EF606: every step is clipped, so that the clipping threshold is the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import number, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

CLIPPED = Threshold(
    0.99,
    "of its norm that a clipped gradient keeps at most",
    "rounding of the norm in float16 is 1e-3, ten times less",
)
ALWAYS = Threshold(
    0.95,
    "share of the steps that are clipped",
    "a judgement: all but the odd one",
)
HARD = Threshold(
    0.1,
    "of its norm that the typical gradient keeps at most",
    "a judgement: the step is a tenth of what the learning rate says",
)
SUFFERS = Threshold(
    0.2,
    "share by which the loss has come down at most, from its start or, if less, from what guessing costs",
    "a judgement, the same as in EF605; recipes that always clip and learn are common",
)
ENOUGH = Threshold(
    20.0,
    "steps at which both norms must be known",
    "a judgement: 19 of 20 is then the least that counts as always",
)


@final
class ClippingAlwaysActive(RunRule):
    """Compares the norm of the gradient before and after clipping."""

    code = "EF606"
    name = "clipping_always_active"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Nearly every gradient is clipped, and by much: the threshold sets the step."
    causes = (CauseName.CLIPPING_ALWAYS_ACTIVE,)
    thresholds = (CLIPPED, ALWAYS, HARD, SUFFERS, ENOUGH)
    page = Page(
        what="""\
The gradient's norm is above the clipping threshold at nearly every step. All steps
then have the same length, whatever the slope, and the learning rate and the threshold
are one number split in two.""",
        why="""\
The threshold was taken over from another model; gradients grow with the number of
parameters, with a summed instead of an averaged loss, and with unscaled targets; or
the gradient explodes and clipping hides it.""",
        mathematics="""\
Clipping to c replaces g by g·c/‖g‖. If it always acts, SGD becomes normalised
gradient descent with step η·c: it cannot settle at a minimum closer than η·c, and far
away it crawls. Adam divides a common factor out again, (cg)/√(c²v) = g/√v, so there
only the changes of the factor from step to step matter.""",
        detection="""\
The norm before clipping and after is known at sampled steps. Alarm only if nearly all
are clipped, the typical one to less than a tenth, the optimizer does not divide the
factor out, and the loss has hardly fallen. Clipping that always acts is the recipe of
many healthy recurrent networks, and for these it is at most noted.""",
        remedies="""\
Set the threshold to about the typical norm, so that it acts on outliers; average the
loss; standardise the targets; find out why the gradient is large (EF102).""",
        references=(
            "Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, ICML 2013.",
            "Chen, Wu, Hong, Understanding gradient clipping in private SGD, NeurIPS 2020.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        judged = [found for role in history.learners if (found := _kept(history, role)) is not None]
        if not judged and history.learners:
            raise CannotJudgeError("the run does not hold gradient norms before and after clipping")
        for role, share, kept in judged:
            if share >= ALWAYS.value and kept <= HARD.value:
                yield _finding(history, role, share, kept)


def clipped_hard(history: History, role: str) -> Cause | None:
    """Clipping as the reason why steps are short; None if it is not."""
    judged = _kept(history, role)
    if judged is None or history.has_second_moments(role):
        return None
    _, share, kept = judged
    return _cause(share, kept) if share >= ALWAYS.value and kept <= HARD.value else None


def _cause(share: float, kept: float) -> Cause:
    text = f"{percent(share)} of the steps are clipped, the typical gradient to {number(kept)} of its norm."
    return Cause(CauseName.CLIPPING_ALWAYS_ACTIVE, 0.8, text)


def _kept(history: History, role: str) -> tuple[str, float, float] | None:
    """Role, share of clipped steps, and what the typical gradient keeps; None if too little is known."""
    import numpy as np

    before = history.scalar("gradient_norm_before_clipping", role)
    after = history.scalar("gradient_norm_after_clipping", role)
    if before is None or after is None:
        return None
    steps = np.intersect1d(before.steps, after.steps)
    raw = before.values[np.searchsorted(before.steps, steps)]
    left = after.values[np.searchsorted(after.steps, steps)]
    known = np.isfinite(raw) & np.isfinite(left) & (raw > 0.0)
    if known.sum() < ENOUGH.value:
        return None
    kept = left[known] / raw[known]
    return role, float((kept < CLIPPED.value).mean()), float(np.median(kept))


def _finding(history: History, role: str, share: float, kept: float) -> Finding:
    try:
        suffers = history.gained(history.loss(role)) < SUFFERS.value
    except CannotJudgeError:
        suffers = False
    cause = _cause(share, kept)
    alarm = suffers and not history.has_second_moments(role)
    return Finding(
        code=ClippingAlwaysActive.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if alarm else Severity.NOTE,
        site=role or "optimizer",
        message="Clipping is always active: its threshold sets the length of every step.",
        causes=(cause,),
        evidence=(
            Evidence(cause.evidence, share, ALWAYS.value),
            Evidence("The typical share that is kept.", kept, HARD.value),
        ),
        remedies=remedies((cause,)),
    )
