"""EF702: the loss becomes NaN or infinite in training; what led there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import LARGE_UPDATE, LEAP, OFF_SCALE, POLYAK
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve

GROWS = Threshold(
    10.0,
    "times its first size that the loss, the norm of the gradient or a weight reaches before it breaks",
    "a judgement: what breaks by growth passes through every size on its way; all else is one op's doing",
)
RECOVERED = Threshold(
    10.0,
    "finite losses at the end after which it is called passed",
    "a judgement: NaN weights never give a finite loss again",
)


@final
class NonFiniteTraining(RunRule):
    """Looks at the first loss that is no number, and at what came before."""

    code = "EF702"
    name = "non_finite_training"
    symptom = Symptom.NON_FINITE
    summary = "The loss becomes NaN or infinite after some steps."
    causes = (
        CauseName.UNSCALED_INPUT,
        CauseName.UNSCALED_TARGET,
        CauseName.RECURRENT_GAIN_TOO_LARGE,
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.PRECISION_OVERFLOW,
        CauseName.UNKNOWN,
    )
    thresholds = (GROWS, RECOVERED, POLYAK, LEAP, LARGE_UPDATE, OFF_SCALE)
    page = Page(
        what="""\
Training began well enough and at some step the loss is NaN or infinite. From there on
every weight that was touched is NaN and nothing can be saved.""",
        why="""\
Steps that overshoot make weights, outputs and gradients grow from step to step until
they leave the format; float16 ends at 65504. Or nothing grew: then one op left its
domain on one batch (log 0, 0/0, the root of a negative number), or the batch itself
held a NaN.""",
        mathematics="""\
With ηλ > 2 the distance to the minimum grows by the factor ηλ − 1 per step: from 1 to
3·10^38, the end of float32, takes 128 steps at a factor of 2 and 56 at 5. A loss that
was finite and small at the step before is therefore no matter of the step size.""",
        detection="""\
The loss, the gradient's norm and the weights are followed up to the first step that is
not finite. If any of them has grown tenfold, steps or data are to blame, as in EF601;
in float16, numbers near its end are. If nothing grew the cause is unknown to this
rule, and EF701 names the op. What moved first is named. A loss that is finite again
for ten steps at the end has only stumbled, which is noted.""",
        remedies="""\
Follow the cause. Go back to a checkpoint before the step that is named. Clip the
gradient by its norm, and skip steps whose gradient is not finite.""",
        references=(
            "IEEE Std 754-2019, clauses 6 and 7.",
            "Micikevicius et al., Mixed precision training, ICLR 2018.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        curves = [(role, _curve(history, role)) for role in history.roles]
        for role, curve in curves:
            if curve is None or curve.first_unsound is None or curve.first_unsound == curve.steps[0]:
                continue
            yield _finding(history, role, curve)
            return
        if all(curve is None for _, curve in curves):
            raise CannotJudgeError("the run has no loss: log it with run.log(loss=...)")


def _curve(history: History, role: str) -> LossCurve | None:
    """The loss, however short: a run that breaks at once has few."""
    try:
        return history.loss(role, at_least=2)
    except CannotJudgeError:
        return None


def _finding(history: History, role: str, curve: LossCurve) -> Finding:
    from evenflow.diagnose.history.moved import moved_first
    from evenflow.diagnose.suspects import growth, suspects

    step = curve.first_unsound
    assert step is not None
    grown = growth(history, role, curve, step)
    overflow = _half_precision(history)
    of_stillness = (CauseName.UNKNOWN, CauseName.LEARNING_RATE_TOO_LOW, CauseName.LONG_RECURRENCE)
    known = [cause for cause in suspects(history, role, curve) if cause.name not in of_stillness]
    if overflow is not None:
        causes: tuple[Cause, ...] = (overflow,)
    elif grown > GROWS.value:
        text = f"Before step {step} what it is made of had grown {number(grown)} times: steps overshoot."
        if all(cause.name is not CauseName.LEARNING_RATE_TOO_HIGH for cause in known):
            known.append(Cause(CauseName.LEARNING_RATE_TOO_HIGH, 0.7, text))
        causes = tuple(known)
    elif known:  # what breaks at the first steps has no time to grow
        causes = tuple(known)
    else:
        text = "Nothing had grown before: one op left its domain, or the batch held a NaN (see EF701)."
        causes = (Cause(CauseName.UNKNOWN, 1.0, text),)
    recovered = curve.finite_at_end >= RECOVERED.value
    return Finding(
        code=NonFiniteTraining.code,
        symptom=Symptom.NON_FINITE,
        severity=Severity.NOTE if recovered else Severity.ERROR,
        site=curve.name,
        message=f"The loss is no number from step {step} on."
        if not recovered
        else f"The loss was no number at step {step}, and is one again.",
        causes=causes,
        evidence=(
            Evidence(
                f"It started at {number(curve.start)} and ended at {number(float(curve.finite[-1]))}.",
                grown,
                GROWS.value,
            ),
            *(Evidence(cause.evidence) for cause in causes),
            *moved_first(history, step),
        ),
        remedies=remedies(causes),
    )


def _half_precision(history: History) -> Cause | None:
    """Overflow of float16, if some output in that format came near its end or left it."""
    from evenflow.diagnose.rules.precision_overflow import near_the_end

    found = near_the_end(history)
    if found is None:
        return None
    label, largest = found
    text = f"{label} runs in float16 and its entries reached {number(largest)}; float16 ends at 65504."
    return Cause(CauseName.PRECISION_OVERFLOW, 0.95, text)
