"""EF601: training runs, and the loss stays where it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import (
    AMPLIFIED,
    CHANCE,
    FLAT,
    GUESSING,
    HALVED,
    KNOWS_MORE,
    LARGE_UPDATE,
    LEAP,
    LOST_IN_TIME,
    OFF_SCALE,
    PATIENCE,
    POLYAK,
    SMALL_UPDATE,
    UNIT_RADIUS,
    UNSURE,
    USUAL_UPDATE,
)
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve

GAINED = Threshold(
    0.5,
    "of its starting level to which the loss had fallen before it came back, which is EF603's business",
    "the same number as there",
)
SLOW = Threshold(
    0.2,
    "of its starting level that the loss has fallen by at most, where steps are seen to overshoot",
    "the same number as in EF605, its opposite: at that pace five such runs are needed",
)
LARGEST_GAIN = Threshold(
    5.0 / 3.0,
    "gain (√fan_in · RMS) of the typical weight matrix at the end, from which no initialisation gives such",
    "the largest of torch.nn.init.calculate_gain without a slope, that of tanh; He's for ReLU is √2",
)
GROWN = Threshold(
    2.0,
    "times its RMS at the start that the typical weight matrix has at the end",
    "doubled: steps have then put in at least as much as was there",
)
RISES = Threshold(
    1.5,
    "times its starting level above which the loss has run away, which is EF603's business",
    "the same number as there",
)


@final
class LossNotDecreasing(RunRule):
    """Looks at the loss from the first step to the last."""

    code = "EF601"
    name = "loss_not_decreasing"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The loss ends where it started, or no better than guessing."
    causes = (
        CauseName.UNSCALED_INPUT,
        CauseName.UNSCALED_TARGET,
        CauseName.INIT_TOO_LARGE,
        CauseName.RESIDUAL_GROWTH,
        CauseName.MISSING_NORMALIZATION,
        CauseName.RECURRENT_GAIN_TOO_LARGE,
        CauseName.LONG_RECURRENCE,
        CauseName.FROZEN_OR_DETACHED,
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.LEARNING_RATE_TOO_LOW,
        CauseName.CLIPPING_ALWAYS_ACTIVE,
        CauseName.OPTIMIZER_EPSILON_DOMINATES,
        CauseName.UPDATE_LOST_TO_ROUNDING,
        CauseName.UNKNOWN,
    )
    thresholds = (
        FLAT, CHANCE, UNSURE, SLOW, GUESSING, PATIENCE, KNOWS_MORE, GAINED, RISES,
        POLYAK, LEAP, LARGE_UPDATE, SMALL_UPDATE, USUAL_UPDATE, OFF_SCALE,
        AMPLIFIED, LOST_IN_TIME, UNIT_RADIUS, HALVED, LARGEST_GAIN, GROWN,
    )  # fmt: skip
    page = Page(
        what="""\
Training runs, steps are taken, and the loss stays at its first level; or it falls only
to what a model gets that ignores its input and guesses.""",
        why="""\
Steps that are far too large throw the weights to where nothing learns any more; steps
that are far too small change nothing; inputs or targets of the wrong scale make any
step one or the other; a gradient that vanishes, a loss that does not fit the output or
a part that is cut off leave nothing to step along (EF101, EF201, EF202, EF501, EF502).""",
        mathematics="""\
Guessing among C classes costs ln C, or −Σ p ln p if one knows how often each comes. A
step −η·g lowers the loss by η‖g‖² to first order and raises it by ½η²gᵀHg to second.
With ½λx² the ratio η‖g‖²/L is 2ηλ: above 4 steps of gradient descent diverge. Conversely
no step u lowers the loss by more than ‖g‖‖u‖, so that L/(‖g‖‖u‖) steps are needed at least.""",
        detection="""\
The median of the first losses is compared with the median of the last tenth, against
noise that is estimated from differences of neighbours. It is flat if it fell by less
than 2 %, or by less than three standard errors, over fifty steps or more; and it is
guessing if it came down to ln C and stays there. Where steps are seen to overshoot,
by Polyak's ratio or a leap of the loss in the first steps, less than 20 % is too little,
and so is a level that no longer falls and is not below the entropy of the frequencies of
the classes; these are known where the first batch was measured, not of a stored run alone.
So it is for a mean squared error that ends at the variance of the targets (within 3 %) or above.
Adaptive steps that are too large do not overshoot in any of these ways; they overwrite the
weights. Less than half is too little where one of the first updates was a tenth of the typical
weight matrix, and it has at the end twice the size and a gain that no initialisation has.
A classifier that starts far below ln C, or a single output that starts below ln 2
and moves by tiny steps, is being fine-tuned and is left alone, and so are adversarial
games, where one loss rises as another falls. Suspects are then looked for in the step
size and the data; if there is none, steps that are not of the usual size are a weak one.""",
        remedies="""\
Follow the cause. If none is named: overfit one batch of ten samples first. If that
fails the wiring is at fault, if it succeeds the data or the step size.""",
        references=(
            "Polyak, Some methods of speeding up the convergence of iteration methods, 1964.",
            "Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, "
            "ICLR 2021.",
            "Ben Braiek, Khomh, Testing feedforward neural networks training programs (TheDeepChecker), "
            "ACM TOSEM 2023.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        from evenflow.diagnose.suspects import is_fine_tuning, overshoots

        for role in history.learners[:1]:  # roles that learn together share one loss
            curve = history.loss(role)
            if curve.first_unsound is not None:
                continue
            if curve.end > RISES.value * curve.start or is_fine_tuning(history, role, curve):
                continue
            said = _stuck(history, curve)
            if not said and overshoots(history, role, curve):
                said = _thrown(curve) or _knows_frequencies(history, curve)
            said = said or _overwritten(history, role, curve)
            if said:
                yield _finding(history, role, curve, said)


def _stuck(history: History, curve: LossCurve) -> str:
    """In which way the loss is stuck; empty if it is not."""
    by_chance = curve.fall < CHANCE.value * curve.error and curve.relative_fall < UNSURE.value
    flat = curve.relative_fall < FLAT.value or by_chance
    gained = curve.best < GAINED.value * curve.start
    if flat and not gained and len(curve) >= PATIENCE.value:
        return f"The loss is where it started: {number(curve.start)} at first, {number(curve.end)} at last."
    variance = history.variance
    if (
        variance is not None
        and curve.start > curve.end >= (1.0 - GUESSING.value) * variance
        and len(curve) >= PATIENCE.value
    ):
        return (
            f"The loss came down to {number(curve.end)}, and to give the mean of the targets, whatever the "
            f"input, costs no more (their variance, {number(variance)})."
        )
    guess = history.guess.loss if history.guess is not None and history.guess.classes > 1 else None
    from_above = RISES.value if len(curve) < PATIENCE.value else 1.0 + GUESSING.value
    if guess is not None and curve.start > from_above * guess and _near(curve.end, guess):
        return (
            f"The loss came down to {number(curve.end)} and no further, which is what guessing costs "
            f"(ln C = {number(guess)})."
        )
    return ""


def _thrown(curve: LossCurve) -> str:
    """What a loss does that steps throw about, so that it hardly falls; empty if it falls."""
    if curve.relative_fall >= SLOW.value:
        return ""
    return (
        f"The loss fell by {percent(max(curve.relative_fall, 0.0))} only, from {number(curve.start)} to "
        f"{number(curve.end)}, while steps overshot."
    )


def _knows_frequencies(history: History, curve: LossCurve) -> str:
    """What a loss does that steps keep above the level that takes no look at the input; empty if it gets on.

    Healthy language models spend their first steps at that level too: on it alone nothing is said.
    """
    cost = history.frequencies
    falls = curve.drift > max(FLAT.value * curve.start, CHANCE.value * curve.error)
    if cost is None or len(curve) < PATIENCE.value or curve.end < cost or falls:
        return ""
    return (
        f"The loss stays at {number(curve.end)} while steps overshoot, and to give each class as often as it "
        f"comes, whatever the input, costs no more ({number(cost)} in the first batch)."
    )


def _overwritten(history: History, role: str, curve: LossCurve) -> str:
    """What a loss does whose first weights large steps have replaced by larger ones; empty if it halves."""
    from evenflow.diagnose.suspects import largest_early_update, typical_gain

    if history.gained(curve) >= HALVED.value or len(curve) < PATIENCE.value:
        return ""
    size, gain = largest_early_update(history, role), typical_gain(history, role)
    if size is None or gain is None or size <= LARGE_UPDATE.value:
        return ""
    if gain.last <= LARGEST_GAIN.value or gain.last < GROWN.value * gain.first:
        return ""
    return (
        f"The loss fell by {percent(max(curve.relative_fall, 0.0))} only, from {number(curve.start)} to "
        f"{number(curve.end)}, while steps overwrote the weights: the typical matrix had a gain of "
        f"{number(gain.first)} at first and has {number(gain.last)}."
    )


def _near(loss: float, guess: float) -> bool:
    return abs(loss - guess) <= GUESSING.value * guess


def _finding(history: History, role: str, curve: LossCurve, said: str) -> Finding:
    from evenflow.diagnose.suspects import by_rule_of_thumb, suspects

    causes = suspects(history, role, curve)
    if causes[0].name is CauseName.UNKNOWN and (weak := by_rule_of_thumb(history, role)) is not None:
        causes = (replace(causes[0], confidence=1.0 - weak.confidence), weak)
    evidence = [
        Evidence(
            f"Over {len(curve)} steps it fell by {percent(max(curve.relative_fall, 0.0))}; noise alone makes "
            f"{number(CHANCE.value * curve.error)}.",
            curve.relative_fall,
            FLAT.value,
        ),
        *(Evidence(cause.evidence) for cause in causes if cause.name is not CauseName.UNKNOWN),
    ]
    return Finding(
        code=LossNotDecreasing.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=curve.name,
        message=said,
        causes=causes,
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )
