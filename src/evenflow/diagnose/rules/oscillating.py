"""EF602: the loss swings and does not settle, and the size of the steps is the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import CHANCE, LARGE_UPDATE, LEAP, OFF_SCALE, POLYAK, USUAL_UPDATE
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number, percent

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
WIDE = Threshold(
    0.15,
    "of its starting level by which the loss moves about the best curve that only falls (from the 10 % to "
    "the 90 % quantile), where that is proved to be no noise of batches",
    "ten times the .014 of the widest of 60 healthy programs of benchmarks/diagnose.py where it is no noise",
)
CARRIED = Threshold(
    0.25,
    "correlation of these movements from one step to the next, from which they are the weights' doing",
    "noise that each batch makes anew has none: at least a quarter of the variance is then none of it",
)
HABIT = Threshold(
    3.0,
    "times that the level rose and came down again",
    "as in EF604: one may be a bad batch or a catapult, three are a habit",
)
BY_SWINGS = 0.5
"""Confidence that steps are too large where swings alone say so (a judgement: even, for data in a bad order
do so too)."""


@final
class Oscillating(RunRule):
    """Looks at the second half of the loss."""

    code = "EF602"
    name = "oscillating"
    symptom = Symptom.OSCILLATING
    summary = "The loss swings up and down, and no noise of batches but the steps make it."
    causes = (
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.UNSCALED_INPUT,
        CauseName.UNSCALED_TARGET,
        CauseName.RECURRENT_GAIN_TOO_LARGE,
    )
    thresholds = (
        SWING, NO_PROGRESS, WIDE, CARRIED, CHANCE, HABIT,
        POLYAK, LEAP, LARGE_UPDATE, USUAL_UPDATE, OFF_SCALE,
    )  # fmt: skip
    page = Page(
        what="""\
From step to step the loss jumps between low and high values, over a range as large as
the loss itself, and its level does not come down; or it comes down, but by long detours.""",
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
tenth of the weights.

Where the level does come down, what the loss does around the best curve that only falls
(isotonic regression) must be proved to be no noise: batches drawn anew make movements that
are independent from step to step, however small the batches are, and swings of the weights
are not. They must be wide against the level that training began at, the mild ones at the edge
of stability are not, come back three times, and steps must be able to make them: some update is
larger than usual, or as many as lie between one turn and the next may add up to a tenth of the weights.""",
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
                yield from _stays(history, role, curve)
            elif _wanders(history, role, curve):
                yield _detours(history, role, curve)


def _stays(history: History, role: str, curve: LossCurve) -> Iterator[Finding]:
    from evenflow.diagnose.suspects import suspects

    found = suspects(history, role, curve)
    causes = tuple(cause for cause in found if cause.name in Oscillating.causes)
    if causes:
        evidence = Evidence(
            f"In the second half four fifths of its values spread over {number(curve.swing)}.",
            curve.swing,
            SWING.value * abs(curve.start),
        )
        message = (
            f"The loss swings by {number(curve.swing)} around {number(curve.middle_of_second_half)} "
            f"and does not settle; it started at {number(curve.start)}."
        )
        yield _finding(curve, message, causes, evidence)


def _wanders(history: History, role: str, curve: LossCurve) -> bool:
    """Whether a loss that comes down swings on its way, by more than batches make it."""
    from evenflow.diagnose.suspects import largest_update

    if not curve.start > curve.end > 0.0 or curve.first_unsound is not None:
        return False
    found, largest = curve.swings, largest_update(history, role)
    return (
        found.size > WIDE.value * curve.start
        and found.carried > max(CARRIED.value, CHANCE.value * found.error)
        and found.rises >= HABIT.value
        and largest is not None
        and (largest > 10.0 * USUAL_UPDATE.value or largest * found.turn > LARGE_UPDATE.value)
    )


def _detours(history: History, role: str, curve: LossCurve) -> Finding:
    from evenflow.diagnose.suspects import largest_update, suspects

    found = curve.swings
    causes = tuple(one for one in suspects(history, role, curve) if one.name in Oscillating.causes)
    if not causes:
        text = f"One update was {percent(largest_update(history, role) or 0.0)} of the typical weight matrix."
        causes = (Cause(CauseName.LEARNING_RATE_TOO_HIGH, BY_SWINGS, text),)
    evidence = Evidence(
        f"Its distances from the best curve that only falls spread over {number(found.size)} and carry over "
        f"from step to step (correlation {found.carried:.2f}); noise of batches does not.",
        found.carried,
        CARRIED.value,
    )
    message = (
        f"The loss comes down from {number(curve.start)} to {number(curve.end)}, and swings over "
        f"{number(found.size)} again and again on its way."
    )
    return _finding(curve, message, causes, evidence)


def _finding(curve: LossCurve, message: str, causes: tuple[Cause, ...], evidence: Evidence) -> Finding:
    return Finding(
        code=Oscillating.code,
        symptom=Symptom.OSCILLATING,
        severity=Severity.WARNING,
        site=curve.name,
        message=message,
        causes=causes,
        evidence=(evidence, *(Evidence(cause.evidence) for cause in causes)),
        remedies=remedies(causes),
    )
