"""EF103: the loss does not feel what a recurrent layer read long ago."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.recurrence import TimeProfile, profiles, worst_states
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import factor
from evenflow.flow import Flow

ROUNDED_AWAY = Threshold(
    7.2247,
    "decades below the largest at which a time step no longer changes the sum over time",
    "log10 2^24: unit roundoff of float32, in which weight gradients are summed",
)
HALF_THE_SEQUENCE = Threshold(
    0.5,
    "share of time steps that are lost to that rounding",
    "a judgement: the loss then sees less than half of each sequence; "
    "28-step row-by-row digits with a default LSTM (healthy in practice) lose none",
)


@final
class VanishingThroughTime(Rule):
    """Compares the gradients of a recurrence's states, step by step."""

    code = "EF103"
    name = "vanishing_through_time"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "The gradient of a recurrent layer shrinks so fast along time that early steps do not count."
    causes = (CauseName.LONG_RECURRENCE,)
    thresholds = (ROUNDED_AWAY, HALF_THE_SEQUENCE)
    page = Page(
        what="""\
A recurrent net learns from the last steps of its sequences only. What was read earlier
sends no signal to the weights, so a dependence over a long time is never found, although
the loss may fall by what the last steps explain.""",
        why="""\
The same step is applied again and again, and each application shrinks the gradient by
about the same factor: a default tanh RNN by .25 decades a step, a default LSTM by .22.
A hundred steps make twenty decades.""",
        mathematics="""\
∂h_T/∂h_t is a product of T − t Jacobians of one step. With weights that repeat it falls
as ρ^(T−t), where ρ is the step's gain: σ_w²E[φ'²] for a plain RNN (per mean square),
(f̄ + κ̄)² for an LSTM whose forget gate is f̄, ρ² ≈ .37 by default and .66 with forget
bias 1. The weight's gradient is a sum over steps; a term 2^−24 of the largest no longer
changes it in float32.""",
        detection="""\
The gradients at the states of `nn.RNN`, `nn.LSTM`, `nn.GRU`, and at each turn of a loop
over a cell, are compared with the largest of them. A step is lost if it no longer
changes the sum over time, and there is an alarm if half of them are. A layer has
forgotten only what both of its states (hidden and cell) have lost, and a loss at every
step reaches them all. Size plays no part.""",
        remedies="""\
An LSTM with forget bias 1 (both bias vectors together), a GRU, chrono initialisation
for known long memory; orthogonal recurrent weights; attention; a loss at every step.""",
        references=(
            "Hochreiter, Untersuchungen zu dynamischen neuronalen Netzen, diploma thesis, TU Munich 1991.",
            "Bengio, Simard, Frasconi, Learning long-term dependencies with gradient descent is difficult, "
            "IEEE TNN 1994.",
            "Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, ICML 2013.",
            "Gers, Schmidhuber, Cummins, Learning to forget, Neural Computation 2000 (the forget gate).",
            "Tallec, Ollivier, Can recurrent neural networks warp time?, ICLR 2018 (chrono initialisation).",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        graph.refuse_non_finite()
        for profile in worst_states(profiles(flow, graph), ROUNDED_AWAY.value):
            if profile.lost(ROUNDED_AWAY.value) >= HALF_THE_SEQUENCE.value * profile.steps:
                yield _finding(profile)


def _finding(profile: TimeProfile) -> Finding:
    lost, steps = profile.lost(ROUNDED_AWAY.value), profile.steps
    rate = profile.decades_per_step
    cause = Cause(
        CauseName.LONG_RECURRENCE,
        1.0,
        f"Each step back in time costs {rate:.2f} decades, a factor of {factor(rate)}; {steps} steps "
        "multiply.",
    )
    return Finding(
        code=VanishingThroughTime.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.WARNING,
        site=profile.place,
        message=f"The loss feels only the last {steps - lost} of {steps} time steps of "
        f"{profile.place or 'the model'}.",
        source=profile.source,
        causes=(cause,),
        evidence=(
            Evidence(
                f"At {lost} of {steps} time steps the gradient of {profile.state} is more than "
                f"{ROUNDED_AWAY.value:.1f} decades below its largest, and lost when float32 sums over time.",
                lost / steps,
                HALF_THE_SEQUENCE.value,
            ),
            Evidence(profile.told()),
        ),
        remedies=remedies([cause]),
    )
