"""EF602: the loss swings and does not settle, and the size of the steps is the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import LARGE_UPDATE, LEAP, OFF_SCALE, POLYAK
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve

SWING = Threshold(
    0.5,
    "of its starting level that the loss swings by in the second half (from the 10 % to the 90 % quantile)",
    "a judgement: smaller swings are what small batches make",
)
NO_PROGRESS = Threshold(
    0.5,
    "of its starting level above which the loss of the second half still lies",
    "a judgement: below half, training gets on in spite of swings, as at the edge of stability",
)


@final
class Oscillating(RunRule):
    """Looks at the second half of the loss."""

    code = "EF602"
    name = "oscillating"
    symptom = Symptom.OSCILLATING
    summary = "The loss swings up and down without getting on, because steps overshoot."
    causes = (
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.UNSCALED_INPUT,
        CauseName.UNSCALED_TARGET,
        CauseName.RECURRENT_GAIN_TOO_LARGE,
    )
    thresholds = (SWING, NO_PROGRESS, POLYAK, LEAP, LARGE_UPDATE, OFF_SCALE)
    page = Page(
        what="""\
From step to step the loss jumps between low and high values, over a range as large as
the loss itself, and its level does not come down.""",
        why="""\
The step is longer than the valley is wide: each one lands on the opposite slope, higher
than it left. The learning rate is too high, or inputs or targets are so large that an
ordinary learning rate is too high for them.""",
        mathematics="""\
Along a direction of curvature λ a step multiplies the distance to the minimum by
1 − ηλ. Between ηλ = 1 and 2 it changes sign at every step and shrinks; above 2 it
grows, until the surface is no longer quadratic.""",
        detection="""\
Swings are measured in the second half, between the 10 % and the 90 % quantile, against
the level that training began at. Small batches make noise that looks the same, so
there is a finding only if the level has not halved and the steps themselves prove too
large: by Polyak's ratio, by a leap of the loss in the first steps, or by updates of a
tenth of the weights.""",
        remedies="""\
Divide the learning rate by 10 and warm it up; standardise inputs and targets; clip the
gradient by its norm; use larger batches if noise remains.""",
        references=(
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.",
            "Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, "
            "ICLR 2021.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        from evenflow.diagnose.suspects import is_fine_tuning

        for role in history.learners[:1]:
            curve = history.loss(role)
            level = curve.middle_of_second_half
            swings = curve.swing > SWING.value * abs(curve.start)
            if is_fine_tuning(history, role, curve):
                continue
            if swings and level > NO_PROGRESS.value * curve.start > 0.0:
                yield from _finding(history, role, curve)


def _finding(history: History, role: str, curve: LossCurve) -> Iterator[Finding]:
    from evenflow.diagnose.suspects import suspects

    found = suspects(history, role, curve)
    causes = tuple(cause for cause in found if cause.name in Oscillating.causes)
    if causes:
        yield Finding(
            code=Oscillating.code,
            symptom=Symptom.OSCILLATING,
            severity=Severity.WARNING,
            site=curve.name,
            message=f"The loss swings by {number(curve.swing)} around {number(curve.middle_of_second_half)} "
            f"and does not settle; it started at {number(curve.start)}.",
            causes=causes,
            evidence=(
                Evidence(
                    f"In the second half four fifths of its values spread over {number(curve.swing)}.",
                    curve.swing,
                    SWING.value * abs(curve.start),
                ),
                *(Evidence(cause.evidence) for cause in causes),
            ),
            remedies=remedies(causes),
        )
