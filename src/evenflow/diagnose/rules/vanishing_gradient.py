"""EF101: the gradient that reaches the first layer is a tiny part of what left the last one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose import zero_gradient
from evenflow.diagnose.attribution import DEEP, DEPTH_AT_LEAST, HALVES, causes_of, measured
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph
from evenflow.diagnose.recurrence import TimeProfile, profiles
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, percent, place, site
from evenflow.diagnose.way import Kind, Way, in_steps, ways
from evenflow.flow import Flow, Role, Stats

LOST = Threshold(
    3.0,
    "decades lost between the last layer and the first",
    "AutoTrainer (Zhang et al. 2021, ICSE): a ratio of 1e-3; with one learning rate, "
    "the first layer then learns a thousand times slower than the last",
)
CHANCE = Threshold(
    2.0,
    "standard deviations of the loss that finite width alone causes, within which it is only noted",
    "Hanin 2018: log ‖g‖² ~ N(−β/2, β) with β = Σ 5/width; two standard deviations hold 95 % of draws",
)
ADAM_EPSILON = Threshold(
    1e-8,
    "RMS of the first layer's parameter gradient below which not even Adam rescales it",
    "Kingma & Ba 2015, algorithm 1; PyTorch's default eps",
)
SUBNORMAL = Threshold(
    0.5,
    "share of the first layer's gradient below the smallest normal number of its format",
    "IEEE 754: below it digits are lost one by one; at half, the typical entry has lost some",
)
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

_BLAME = {
    Kind.SQUASHING: CauseName.SATURATING_ACTIVATION,
    Kind.RECTIFIER: CauseName.DEAD_RELU,
    Kind.LINEAR: CauseName.INIT_TOO_SMALL,
}


@final
class VanishingGradient(Rule):
    """Compares the gradient at the first layer with that at the last, and along time."""

    code = "EF101"
    name = "vanishing_gradient"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "The gradient shrinks by orders of magnitude on its way back to the first layers."
    causes = (
        CauseName.SATURATING_ACTIVATION,
        CauseName.INIT_TOO_SMALL,
        CauseName.DEAD_RELU,
        CauseName.DEPTH_WITHOUT_SKIP,
        CauseName.LONG_RECURRENCE,
        CauseName.ZERO_INIT_SYMMETRY,
        CauseName.PRECISION_UNDERFLOW,
        CauseName.UNKNOWN,
    )
    thresholds = (
        LOST,
        CHANCE,
        HALVES,
        DEPTH_AT_LEAST,
        DEEP,
        ADAM_EPSILON,
        SUBNORMAL,
        ROUNDED_AWAY,
        HALF_THE_SEQUENCE,
    )
    page = Page(
        what="""\
The first layers receive a gradient that is thousands to billions of times smaller
than the last ones. They stay at their random start while the last layers fit what
little those let through, and the loss stalls early. In a recurrent net the same
happens along time: the loss does not feel what was read long ago.""",
        why="""\
The chain rule multiplies one factor per layer. If the typical factor is below 1 the
product falls exponentially with depth. A sigmoid's slope is at most 1/4; PyTorch's
default weights shrink a ReLU net by √6 per layer; a step of a default LSTM keeps
about 60 %.""",
        mathematics="""\
With δ_l = ∂L/∂z_l at pre-activation z_l, width n and weights of variance σ_w²/n,

    E‖δ_l‖² = χ₁ · E‖δ_(l+1)‖²,   χ₁ = σ_w² E[φ'(√q z)²],   z ~ N(0,1)

(Poole 2016; Schoenholz 2017). χ₁ < 1 vanishes with depth scale −1/ln χ₁. Sigmoid:
φ' ≤ 1/4, so χ₁ ≤ σ_w²/16; PyTorch's σ_w² = 1/3 gives .84 decades per layer. ReLU:
χ₁ = σ_w²/2. One network shows e^(−β/2) of the mean, give or take √β in log ‖δ‖²,
with β = Σ 5/n (Hanin 2018).

Along time the weights are the same at every step: ‖∂L/∂h_t‖ falls as ρ^(T−t) with
ρ² ≈ .37 for a default LSTM, .66 with forget bias 1.""",
        detection="""\
The gradient is followed from the last layer back to the first along the ops that it
cannot avoid, once for every entry of data. A tensor whose size a later normalisation
takes away is measured in units of that size as well as plainly, and the milder of the
two counts; averages over k entries are allowed their √k. So neither unit-variance
weights under BatchNorm nor small embeddings nor global pooling raise an alarm.
The weights of the first layer see δ·x, so inputs larger than 1 are credited to it.
Absolute size plays no part in the alarm, since a mean over many elements makes every
gradient small. It decides the severity: *error* where no common optimizer can make up
for it. A prediction must be past the threshold by the half-width of its interval.

Causes are ranked by decades: what activations lose against the weights made for them,
and what the weights lose against what the activation needs. A layer that is zero by
design (a zero-initialised head) is a note. Along time, steps count as lost when
they no longer change the sum over time in float32.""",
        remedies="""\
Swap sigmoid or tanh for ReLU, GELU or SiLU; initialise for the activation (He,
Glorot); normalise before each activation; add skip connections; for sequences use an
LSTM with forget bias 1, a GRU, or attention. Adam and its relatives hide a small
gradient down to about their ε, but not its noise.""",
        references=(
            "Hochreiter, Untersuchungen zu dynamischen neuronalen Netzen, diploma thesis, TU Munich 1991.",
            "Bengio, Simard, Frasconi, Learning long-term dependencies with gradient descent is difficult, "
            "IEEE TNN 1994.",
            "Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, "
            "AISTATS 2010.",
            "Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, ICML 2013.",
            "He, Zhang, Ren, Sun, Delving deep into rectifiers, ICCV 2015.",
            "Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, Deep information propagation, ICLR 2017.",
            "Hanin, Which neural net architectures give rise to exploding and vanishing gradients?, "
            "NeurIPS 2018.",
            "Zhang et al., AutoTrainer: an automatic DNN training problem detection and repair system, "
            "ICSE 2021.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = OpGraph(flow)
        graph.refuse_non_finite()
        found = ways(graph)
        yield from zero_gradient.findings(self.code, flow, graph, found)
        worst = min(
            (way for way in found if math.isfinite(way.excess)), key=lambda way: way.certain, default=None
        )
        if worst is not None and worst.certain + worst.half_width + _made_up(graph, worst) < -LOST.value:
            yield _by_depth(flow, graph, in_steps(graph, worst))
        for profile in _worst_states(profiles(flow, graph)):
            if profile.lost(ROUNDED_AWAY.value) > HALF_THE_SEQUENCE.value * profile.steps:
                yield _by_time(profile)


def _by_depth(flow: Flow, graph: OpGraph, way: Way) -> Finding:
    usual = way.usual(CHANCE.value)
    causes = causes_of(way, _BLAME, sign=-1)
    reason = _out_of_reach(flow, graph, way)
    if way.excess > usual[0]:
        severity = Severity.NOTE
    else:
        severity = Severity.WARNING if reason is None else Severity.ERROR
    return Finding(
        code=VanishingGradient.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=severity,
        site=site(way.first),
        message=f"The gradient shrinks by a factor of {factor(way.excess)} from {place(way.last)} back to "
        f"{place(way.first)}, over {count(way.layers, 'layer')}.",
        source=way.first.source,
        causes=causes,
        evidence=(*measured(way, -LOST.value, usual), *filter(None, [reason])),
        remedies=remedies(causes),
    )


def _made_up(graph: OpGraph, way: Way) -> float:
    """Decades by which large inputs make up for small gradients: weights see δ·x."""
    inputs = graph.input_rms(way.first)
    return max(0.0, math.log10(inputs)) if inputs and not way.first.inputs else 0.0


def _out_of_reach(flow: Flow, graph: OpGraph, way: Way) -> Evidence | None:
    """Why not even an adaptive optimizer can make up for it; None if one can."""
    gradient = _weight_gradient(flow, graph, way)
    if gradient is not None and gradient.rms < ADAM_EPSILON.value:
        return Evidence(
            f"The weight gradient of {place(way.first)} has RMS {gradient.rms:.1e}, below Adam's ε of "
            f"{ADAM_EPSILON.value:.0e}: adaptive optimizers do not make up for it.",
            gradient.rms,
            ADAM_EPSILON.value,
        )
    stats = way.first.stats
    small = None if stats is None else stats.subnormal_fraction(way.first.dtype)
    if small is not None and small > SUBNORMAL.value:
        return Evidence(
            f"{percent(small)} of the gradient at {place(way.first)} lies below the smallest normal number "
            f"of {way.first.dtype}.",
            small,
            SUBNORMAL.value,
        )
    return None


def _weight_gradient(flow: Flow, graph: OpGraph, way: Way) -> Stats | None:
    names = {row.site.path for row in graph.weights_at(way.first)}
    found = [
        row.stats for row in flow.select(Role.PARAMETER_GRADIENT) if row.site.path in names and row.stats
    ]
    return Stats.merge_all(found) if found else None


def _worst_states(found: Iterator[TimeProfile]) -> list[TimeProfile]:
    """For each module the state that remembers longest in its worst layer.

    The gradient may travel in either of an LSTM's two states, so a layer has
    forgotten only what both have lost.
    """
    layers: dict[tuple[str, str], TimeProfile] = {}
    for profile in found:
        key = (profile.place, profile.state.partition("_")[2])
        best = layers.get(key)
        if best is None or profile.lost(ROUNDED_AWAY.value) < best.lost(ROUNDED_AWAY.value):
            layers[key] = profile
    modules: dict[str, TimeProfile] = {}
    for (module, _), profile in layers.items():
        worst = modules.get(module)
        if worst is None or profile.lost(ROUNDED_AWAY.value) > worst.lost(ROUNDED_AWAY.value):
            modules[module] = profile
    return list(modules.values())


def _by_time(profile: TimeProfile) -> Finding:
    lost, steps = profile.lost(ROUNDED_AWAY.value), profile.steps
    rate = profile.decades_per_step
    cause = Cause(
        CauseName.LONG_RECURRENCE,
        1.0,
        f"Each step back in time costs {rate:.2f} decades, a factor of {factor(rate)}; {steps} steps "
        "multiply.",
    )
    return Finding(
        code=VanishingGradient.code,
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
        ),
        remedies=remedies([cause]),
    )
