"""EF705: the loss scaler skips step after step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import count, number, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

SETTLES = Threshold(
    30.0,
    "first steps in which a scaler may skip freely",
    "it halves its scale at each overflow, and from 2^16 (GradScaler's first) to 1 that takes 16 steps; "
    "twice as many for luck",
)
SKIPPED = Threshold(
    0.05,
    "share of the steps after those that are skipped",
    "GradScaler tries a larger scale every 2000 steps, so a healthy run skips 1 in 2000; 5 % is a hundred "
    "times that",
)
MANY = Threshold(
    5.0,
    "skipped steps after those, at least",
    "a judgement: fewer may be chance in a short run",
)
LOWEST = Threshold(
    1.0,
    "loss scale below which gradients overflow even unscaled",
    "at a scale of 1 the gradients are those of the loss itself",
)


@final
class LossScaleThrashing(RunRule):
    """Counts the steps that a loss scaler skipped."""

    code = "EF705"
    name = "loss_scale_thrashing"
    symptom = Symptom.NON_FINITE
    summary = "The loss scaler keeps skipping steps: gradients overflow at any scale it tries."
    causes = (CauseName.PRECISION_OVERFLOW,)
    thresholds = (SETTLES, SKIPPED, MANY, LOWEST)
    page = Page(
        what="""\
The `GradScaler` finds infinities in the gradients again and again, skips the step and
halves its scale; after a while it has reached 1 or less, or every few steps are lost.""",
        why="""\
Gradients span more than float16 holds, so no scale suits all of them; or they are not
finite for another reason (a NaN in the batch, log 0, infinite activations), for which
a scaler can do nothing but skip for ever.""",
        mathematics="""\
float16 gradients live between 2⁻²⁴ and 2¹⁶, forty powers of two. The scaler looks for
the largest s with s·max|g| < 65504: it halves s at each overflow and doubles it after
2000 steps without. In equilibrium one step in 2000 is skipped.""",
        detection="""\
The first 30 steps, in which the scale is found, do not count. After them, 5 % of skipped
steps (at least five) are an alarm, and so is a scale that has fallen below 1.""",
        remedies="""\
Use bfloat16. If it must be float16: run what overflows in float32 (EF703 names it), and
clip after `scaler.unscale_`. If the scale falls without end, look for a NaN (EF701).""",
        references=(
            "Micikevicius et al., Mixed precision training, ICLR 2018, section 3.2.",
            "PyTorch documentation, torch.amp.GradScaler: growth_interval and backoff_factor.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        scale, skipped = history.scalar("loss_scale"), history.scalar("skipped")
        if scale is None or skipped is None:
            return  # no scaler, or one that never skipped
        begin = int(scale.steps[0]) + SETTLES.value
        later = int((scale.steps >= begin).sum())
        lost = int((skipped.steps >= begin).sum())
        if not later:
            return
        share, lowest = lost / later, float(scale.values.min())
        if (share < SKIPPED.value or lost < MANY.value) and lowest >= LOWEST.value:
            return
        text = (
            f"After the first {SETTLES.value:.0f} steps {lost} of {later} were skipped ({percent(share)}), "
            f"and the loss scale went down to {number(lowest)}."
        )
        cause = Cause(CauseName.PRECISION_OVERFLOW, 1.0, text)
        yield Finding(
            code=self.code,
            symptom=self.symptom,
            severity=Severity.WARNING,
            site="loss_scale",
            message=f"The loss scaler skipped {count(lost, 'step')} and finds no scale that suits.",
            causes=(cause,),
            evidence=(Evidence(text, share, SKIPPED.value), Evidence("Lowest scale.", lowest, LOWEST.value)),
            remedies=remedies((cause,)),
        )
