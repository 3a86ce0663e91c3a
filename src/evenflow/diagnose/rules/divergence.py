"""EF603: the loss runs away from where it started, or loses all that it had gained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import CHANCE, LARGE_UPDATE, LEAP, OFF_SCALE, POLYAK
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve

RISES = Threshold(
    1.5,
    "times its starting level at which the loss ends",
    "a judgement: untrained models of one kind differ by less in their first loss",
)
LOST = Threshold(
    0.9,
    "of its starting level to which the loss returns after it had fallen below half",
    "a judgement: nearly all that was learned is gone",
)
GAINED = Threshold(
    0.5,
    "of its starting level to which the loss had fallen before",
    "a judgement: half, so that something was learned",
)


@final
class Divergence(RunRule):
    """Compares the end of the loss with its start and its best."""

    code = "EF603"
    name = "divergence"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The loss ends far above where it started, or back there after it had fallen."
    causes = (
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.UNSCALED_INPUT,
        CauseName.UNSCALED_TARGET,
        CauseName.RECURRENT_GAIN_TOO_LARGE,
        CauseName.LONG_RECURRENCE,
        CauseName.UNKNOWN,
    )
    thresholds = (RISES, LOST, GAINED, CHANCE, POLYAK, LEAP, LARGE_UPDATE, OFF_SCALE)
    page = Page(
        what="""\
The loss grows and stays high: training has made the model worse than it was untrained.
Or it fell as it should, and at some step it rose again and never came back.""",
        why="""\
Steps larger than the surface allows throw the weights out of the region where the
gradient means anything. Sharpness can grow while the loss falls, so that a learning
rate that was fine at first is too high later; a single bad batch can do the same.""",
        mathematics="""\
With curvature λ a step multiplies the distance from the minimum by |1 − ηλ|, which is
above 1 for η > 2/λ. Losses with a flat far side (saturation, cross-entropy) stop the
growth at some high level instead of at infinity: the catapult comes back only if
sharpness is lower where it lands (Lewkowycz et al. 2020).""",
        detection="""\
The level of the last tenth is compared with the first level: one and a half times as
much, beyond noise, is divergence. A catapult that comes down again ends low and raises
nothing. What moved first is the parameter or output whose size leaves its own range
earliest before the loss does. A loss that becomes NaN is EF702's business, and
adversarial games are left out.""",
        remedies="""\
Divide the learning rate by 10, warm it up, clip the gradient by its norm; look at what
moved first; go back to a checkpoint before the step that is named.""",
        references=(
            "Lewkowycz et al., The large learning rate phase of deep learning: the catapult mechanism, 2020.",
            "Gilmer et al., A loss curvature perspective on training instabilities of deep learning models, "
            "ICLR 2022.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        for role in history.learners[:1]:
            curve = history.loss(role)
            if curve.first_unsound is not None or not curve.start > 0.0:
                continue
            if -curve.fall <= CHANCE.value * curve.error and curve.best > GAINED.value * curve.start:
                continue
            ran_away = curve.end > RISES.value * curve.start
            lost = curve.best < GAINED.value * curve.start and curve.end > LOST.value * curve.start
            if ran_away or lost:
                yield _finding(history, role, curve)


def _finding(history: History, role: str, curve: LossCurve) -> Finding:
    from evenflow.diagnose.history.moved import moved_first
    from evenflow.diagnose.suspects import suspects

    causes = suspects(history, role, curve)
    began = curve.left_level()
    best = "" if curve.best >= curve.start else f" after {number(curve.best)} at its best"
    evidence = [
        Evidence(
            f"It started at {number(curve.start)} and ends at {number(curve.end)}{best}.",
            curve.end / curve.start,
            RISES.value,
        ),
        Evidence(f"It left its level at step {began}.", float(began)),
        *moved_first(history, began),
    ]
    return Finding(
        code=Divergence.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.ERROR,
        site=curve.name,
        message=f"Training diverges: the loss ends at {number(curve.end / curve.start)} times its start.",
        causes=causes,
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )
