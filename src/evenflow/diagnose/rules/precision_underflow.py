"""EF704: gradients in float16 are smaller than the smallest number it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import PERSISTENT
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import count, number, percent
from evenflow.flow import FORMATS, Role

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

LOST = Threshold(
    1.0,
    "times the smallest float16 number, 2⁻²⁴, that the RMS of a gradient has at most",
    "entries are rounded to multiples of q = 2⁻²⁴; at an RMS of q the rounding error q/√12 is .29 of "
    "it, and of normally distributed entries 38 % (|x| < q/2) become zero",
)
CLOSE = Threshold(
    1e3,
    "times 2⁻²⁴ that the smallest gradient has at most, for gradients that are zero to count",
    "a judgement: what lies three decades above the end does not have neighbours that were rounded to zero",
)
MOST = Threshold(
    0.25,
    "share of the float16 gradients that it must hold for, to be an alarm",
    "a judgement: one row in four, more than a head or a single branch",
)


@final
class PrecisionUnderflow(RunRule):
    """Compares gradients in float16, as they were stored, with its smallest number."""

    code = "EF704"
    name = "precision_underflow"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "Gradients in float16 are rounded to zero, because the loss is not scaled, or too little."
    causes = (CauseName.PRECISION_UNDERFLOW,)
    thresholds = (LOST, CLOSE, PERSISTENT, MOST)
    page = Page(
        what="""\
Under autocast gradients pass through float16 on their way back. What is smaller than
2⁻²⁵ = 3·10⁻⁸ becomes zero there, and the layers below learn from what is left: noise,
or nothing.""",
        why="""\
There is no `GradScaler`, or its scale has been driven down by overflows elsewhere; the
loss is a mean over very many entries; the gradient vanishes by depth as well.""",
        mathematics="""\
float16 has normal numbers down to 2⁻¹⁴ and multiples of q = 2⁻²⁴ below. Rounding to a
grid of q adds noise of q/√12. A loss scale s multiplies every gradient by s and costs
nothing, as long as the largest stays below 65504. bfloat16 has the range of float32,
down to 10⁻⁴⁰, and needs no scale.""",
        detection="""\
The RMS of each float16 gradient, times the loss scale of its step (that is how it was
stored), is compared with 2⁻²⁴, and a gradient that is zero throughout counts if the
smallest other one is within a factor of 1000 of that. It must be so at half of the
sampled steps and for a quarter of the float16 gradients, and training must not do well
in spite of it.""",
        remedies="""\
Use `torch.amp.GradScaler`; use bfloat16 where the machine has it; run the loss and the
last layer in float32.""",
        references=(
            "Micikevicius et al., Mixed precision training, ICLR 2018, section 3.2 and figure 3.",
            "IEEE Std 754-2019, table 3.5.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        import numpy as np

        from evenflow.diagnose.suspects import on_steps

        scales = history.scalar("loss_scale")
        scale = np.ones(len(history.steps)) if scales is None else on_steps(scales, history.steps)
        rows = []
        for role in (Role.ACTIVATION_GRADIENT, Role.PARAMETER_GRADIENT):
            grid = history.grids.get(role)
            for site, dtype in enumerate(grid.dtypes if grid is not None else ()):
                if grid is not None and dtype == _FORMAT and np.isfinite(grid.rms[:, site]).any():
                    rows.append((grid.labels[site], grid.rms[:, site] * scale))
        if not rows:
            return
        smallest = _SMALLEST
        stored = np.array([sizes for _, sizes in rows])
        positive = stored[np.isfinite(stored) & (stored > 0.0)]
        near = positive.size == 0 or positive.min() < CLOSE.value * smallest
        with np.errstate(invalid="ignore"):
            low = (stored <= LOST.value * smallest) & ((stored > 0.0) | near)
        share = low.sum(axis=1) / np.maximum(np.isfinite(stored).sum(axis=1), 1)
        lost = [index for index in range(len(rows)) if share[index] >= PERSISTENT.value]
        if lost:
            sizes = {rows[index][0]: float(np.nanmedian(stored[index])) for index in lost}
            yield _finding(history, sizes, len(rows), smallest)


_FORMAT = "float16"
_SMALLEST = 2.0 ** FORMATS[_FORMAT].min_subnormal


def _finding(history: History, sizes: dict[str, float], judged: int, smallest: float) -> Finding:
    name = min(sizes, key=lambda one: sizes[one])
    share = len(sizes) / judged
    text = (
        f"The typical gradient at {name} is stored with an RMS of {number(sizes[name])}; "
        f"the smallest float16 number is {number(smallest)}."
    )
    cause = Cause(CauseName.PRECISION_UNDERFLOW, 0.9, text)
    return Finding(
        code=PrecisionUnderflow.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.WARNING if share >= MOST.value and not history.has_learned else Severity.NOTE,
        site=name,
        message=f"{count(len(sizes), 'gradient')} of {judged} in float16 are rounded to zero or to noise.",
        causes=(cause,),
        evidence=(
            Evidence(text, sizes[name], LOST.value * smallest),
            Evidence(f"So it is for {percent(share)} of the float16 gradients.", share, MOST.value),
        ),
        remedies=remedies((cause,)),
    )
