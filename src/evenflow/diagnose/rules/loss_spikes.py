"""EF604: the loss jumps up now and then; what moved first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import count, number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve
    from evenflow.diagnose.history.loss import Spike

DEVIATIONS = Threshold(
    6.0,
    "deviations above the median of the 16 losses before, in their logarithm, that make a spike",
    "OLMo-core's rule for steps to be skipped: 6σ over 128 steps",
)
TIMES = Threshold(
    2.0,
    "times the median of the 16 losses before, at least",
    "a judgement: what is less hurts no training",
)
MANY = Threshold(
    3.0,
    "spikes from which they are an alarm, if training does not get on",
    "a judgement: one may be a bad batch, three are a habit",
)


@final
class LossSpikes(RunRule):
    """Looks for single losses far above those before."""

    code = "EF604"
    name = "loss_spikes"
    symptom = Symptom.OSCILLATING
    summary = "The loss jumps far above its level and comes back."
    causes = (CauseName.LEARNING_RATE_TOO_HIGH, CauseName.UNKNOWN)
    thresholds = (DEVIATIONS, TIMES, MANY)
    page = Page(
        what="""\
A training that goes well is interrupted by steps at which the loss is many times what
it was, and then needs steps or thousands of steps to come back.""",
        why="""\
A batch unlike the others; a direction that had become sharper than 2/η; Adam's second
moment that had forgotten how large gradients can be, so that one ordinary gradient
makes an extraordinary step; attention scores or output logits that have grown.""",
        mathematics="""\
Adam divides by √v, a mean over some 1/(1−β₂) steps. A parameter whose gradient was g
for long and is G ≫ g at one step moves by η·G/√((1−β₂)G² + g²), up to 1/√(1−β₂) = 32
(β₂ = .999) ordinary steps at once.""",
        detection="""\
Each loss is compared, as a logarithm, with the median of the 16 before it, in units of
the noise of the 128 before it, which is told from a trend by differences. The tensor
whose RMS left its own range first, at most ten sampled steps before, is named. Spikes
that training survives are noted; they are an alarm if there are three or more and the
loss does not fall.""",
        remedies="""\
Look at the batch of that step. Clip the gradient by its norm; lower β₂ (.95) or the
learning rate; normalise queries and keys; skip steps whose gradient is an outlier.""",
        references=(
            "Molybog et al., A theory on Adam instability in large-scale machine learning, 2023.",
            "Wortsman et al., Small-scale proxies for large-scale transformer training instabilities, "
            "ICLR 2024.",
            "OLMo-core, SkipStepOptimizer.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        for role in history.learners[:1]:
            curve = history.loss(role)
            spikes = curve.spikes(DEVIATIONS.value, TIMES.value)
            if spikes:
                yield _finding(history, role, curve, spikes)


def _finding(history: History, role: str, curve: LossCurve, spikes: list[Spike]) -> Finding:
    from evenflow.diagnose.history.moved import moved_first
    from evenflow.diagnose.suspects import steps_too_large

    worst = max(spikes, key=lambda spike: spike.ratio)
    text = "Each step of training takes its part in a spike; which part led is said above."
    cause = steps_too_large(history, role, curve) or Cause(CauseName.UNKNOWN, 1.0, text)
    harmful = len(spikes) >= MANY.value and curve.fall <= 0.0
    others = [str(spike.step) for spike in spikes if spike is not worst][:5]
    evidence = [
        Evidence(
            f"At step {worst.step} the loss was {number(worst.ratio)} times its level before.",
            worst.ratio,
            TIMES.value,
        ),
        *moved_first(history, worst.step),
    ]
    if others:
        evidence.append(Evidence(f"Others were at step {', '.join(others)}: {len(spikes)} in all."))
    return Finding(
        code=LossSpikes.code,
        symptom=Symptom.OSCILLATING,
        severity=Severity.WARNING if harmful else Severity.NOTE,
        site=curve.name,
        message=f"The loss has {count(len(spikes), 'spike')}, the highest at step {worst.step}.",
        causes=(cause,),
        evidence=tuple(evidence),
        remedies=remedies((cause,)),
    )
