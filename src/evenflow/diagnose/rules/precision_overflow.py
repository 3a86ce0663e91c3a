"""EF703: outputs in float16 come near the end of the format, or leave it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import module_name, number
from evenflow.flow import FORMATS, Role

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

NEAR = Threshold(
    1.0,
    "powers of two below the end of the format at which its largest outputs are near it",
    "a factor of 2: one more doubling of the weights or of the batch's extremes passes 65504; "
    "IEEE 754-2019, table 3.5",
)


@final
class PrecisionOverflow(RunRule):
    """Looks at the largest entry of every float16 output."""

    code = "EF703"
    name = "precision_overflow"
    symptom = Symptom.NON_FINITE
    summary = "Outputs in float16 reach the end of the format, 65504."
    causes = (CauseName.PRECISION_OVERFLOW,)
    thresholds = (NEAR,)
    page = Page(
        what="""\
Under autocast, or with half-precision weights, some module returns numbers close to
65504 or infinities. A loss scaler cannot help: it looks after gradients, and this
happens on the way forward.""",
        why="""\
float16 has five bits of exponent. Long sums (attention scores without 1/√d, a matrix
product over a wide axis), residual streams that grow with depth and unscaled inputs
pass its end, while float32 and bfloat16 hold 3·10^38.""",
        mathematics="""\
The largest finite float16 is (2 − 2⁻¹⁰)·2¹⁵ = 65504. A sum of n products of unit
variance has a standard deviation of √n and among m of them a largest one of about
√(2n ln m).""",
        detection="""\
The largest absolute entry of each float16 output is followed over the sampled steps.
An infinity in an output is an error if the loss was lost with it, or nothing says that
it was not; numbers within a factor of two of the end are noted, with the step at which
they came there first.""",
        remedies="""\
Run that module in bfloat16 or float32 (`torch.autocast(enabled=False)` around it);
scale scores by 1/√d; normalise before the op.""",
        references=(
            "Micikevicius et al., Mixed precision training, ICLR 2018.",
            "IEEE Std 754-2019, table 3.5.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        found = near_the_end(history)
        if found is None:
            return
        label, largest = found
        lost = math.isinf(largest)
        text = f"Its largest entry is {number(largest)}; {_FORMAT} ends at {_LARGEST}."
        cause = Cause(CauseName.PRECISION_OVERFLOW, 1.0, text)
        yield Finding(
            code=self.code,
            symptom=self.symptom,
            severity=Severity.ERROR if lost and not _goes_on(history) else Severity.NOTE,
            site=label,
            message=f"The output of {module_name(label)} {'leaves' if lost else 'nearly fills'} {_FORMAT}.",
            causes=(cause,),
            evidence=(Evidence(text, largest, _NEAR),),
            remedies=remedies((cause,)),
        )


_FORMAT = "float16"
_LARGEST = 65504
_NEAR = 2.0 ** (FORMATS[_FORMAT].max_exponent + 1 - NEAR.value)


def near_the_end(history: History) -> tuple[str, float] | None:
    """The float16 output with the largest entry, if that is near the end; infinity if it passed it."""
    import numpy as np

    grid = history.grids.get(Role.ACTIVATION)
    if grid is None or _FORMAT not in grid.dtypes:
        return None
    half = np.array([dtype == _FORMAT for dtype in grid.dtypes])
    with np.errstate(invalid="ignore"):
        largest = np.where(grid.nonfinite_count > 0, math.inf, np.nan_to_num(grid.abs_max))[:, half]
    reached = largest.max(axis=0)
    if reached.max() < _NEAR:
        return None
    # the earliest step of an infinity tells its origin from what it spread to
    first = np.where(np.isinf(largest).any(axis=0), np.isinf(largest).argmax(axis=0), len(largest))
    site = int(first.argmin()) if np.isinf(reached).any() else int(reached.argmax())
    return np.array(grid.labels)[half][site].item(), float(reached[site])


def _goes_on(history: History) -> bool:
    """Whether a loss was logged and is a number at the end."""
    from evenflow.diagnose.rule import CannotJudgeError

    try:
        return all(history.loss(role, at_least=1).finite_at_end > 0 for role in history.roles)
    except CannotJudgeError:
        return False
