"""EF706: steps too small for the format of the weights change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import HALVED, PERSISTENT
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

LOST = Threshold(
    0.5,
    "share of a weight's entries that have a gradient and are not changed by the step",
    "a judgement: the typical entry",
)


@final
class UpdateLostToRounding(RunRule):
    """Counts entries that a step left as they were, in short formats."""

    code = "EF706"
    name = "update_lost_to_rounding"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Most updates are smaller than half a unit in the last place of their weight."
    causes = (CauseName.UPDATE_LOST_TO_ROUNDING,)
    thresholds = (LOST, PERSISTENT, HALVED)
    page = Page(
        what="""\
The weights are kept in bfloat16 or float16, and most of their entries stay exactly the
same from step to step although they have gradients. The loss falls at first and then
stands still, earlier and higher than it would in float32.""",
        why="""\
bfloat16 keeps eight binary digits. An update of less than about a 500th of its weight
is rounded away, and ordinary updates are a thousandth. The smaller the learning rate,
the more is lost, so that a decaying schedule ends in standstill.""",
        mathematics="""\
Between 2^e and 2^(e+1) neighbours in bfloat16 are 2^(e−7) apart. w + u = w if |u| is
less than half of that, which is |u/w| < 2⁻⁸ … 2⁻⁹ (.4 % to .2 %); in float16 it is
2⁻¹¹ … 2⁻¹² and in float32 2⁻²⁴ … 2⁻²⁵. Rounding to nearest loses such updates for
ever, however many come; stochastic rounding keeps them on average.""",
        detection="""\
At sampled steps the watcher counts the entries of each weight in a short format that
have a gradient other than zero and did not change. Half of the entries at half of the
steps are a finding, an alarm if the loss has not halved.""",
        remedies="""\
Keep a float32 copy of the weights (autocast does), or use an optimizer that does; round
stochastically; or add up the lost parts (Kahan summation).""",
        references=(
            "Zamirai et al., Revisiting BFloat16 training, 2020.",
            "Micikevicius et al., Mixed precision training, ICLR 2018, section 3.1.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        found = _lost(history)
        if found:
            yield _finding(history, found)


def rounding_swallows(history: History) -> Cause | None:
    """Rounding as the reason why steps are short; None if it is not."""
    found = _lost(history)
    return _cause(found) if len(found) > len(history.matrices) / 2 else None


def _lost(history: History) -> dict[str, float]:
    """Weight matrix → share of its entries that the typical step leaves as they are, where that is most."""
    import numpy as np

    lost = history.figure("lost_update_fraction")
    return {
        name: float(np.median(lost[name].values))
        for name in history.matrices
        if name in lost and (lost[name].values >= LOST.value).mean() >= PERSISTENT.value
    }


def _cause(found: dict[str, float]) -> Cause:
    name = max(found, key=lambda one: found[one])
    text = f"At the typical step {percent(found[name])} of {name} has a gradient and does not change."
    return Cause(CauseName.UPDATE_LOST_TO_ROUNDING, 0.9, text)


def _finding(history: History, found: dict[str, float]) -> Finding:
    name, cause = max(found, key=lambda one: found[one]), _cause(found)
    return Finding(
        code=UpdateLostToRounding.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if _suffers(history) else Severity.NOTE,
        site=name,
        message=f"Rounding swallows most updates of {len(found)} of {len(history.matrices)} weight matrices.",
        causes=(cause,),
        evidence=(Evidence(cause.evidence, found[name], LOST.value),),
        remedies=remedies((cause,)),
    )


def _suffers(history: History) -> bool:
    try:
        return any(history.gained(history.loss(role)) < HALVED.value for role in history.learners)
    except CannotJudgeError:
        return False
