"""EF101: the gradient that reaches the first layer is a tiny part of what left the last one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose import zero_gradient
from evenflow.diagnose.attribution import DEEP, DEPTH_AT_LEAST, HALVES, causes_of, measured
from evenflow.diagnose.finding import CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
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
_BLAME = {
    Kind.SQUASHING: CauseName.SATURATING_ACTIVATION,
    Kind.RECTIFIER: CauseName.DEAD_RELU,
    Kind.LINEAR: CauseName.INIT_TOO_SMALL,
    Kind.FACTOR: CauseName.INIT_TOO_SMALL,
    Kind.POST_NORM: CauseName.POST_LN_DEPTH,
}


@final
class VanishingGradient(Rule):
    """Compares the gradient at the first layer with that at the last."""

    code = "EF101"
    name = "vanishing_gradient"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "The gradient shrinks by orders of magnitude on its way back to the first layers."
    causes = (
        CauseName.SATURATING_ACTIVATION,
        CauseName.INIT_TOO_SMALL,
        CauseName.DEAD_RELU,
        CauseName.DEPTH_WITHOUT_SKIP,
        CauseName.POST_LN_DEPTH,
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
    )
    page = Page(
        what="""\
The first layers receive a gradient that is thousands to billions of times smaller
than the last ones. They stay at their random start while the last layers fit what
little those let through, and the loss stalls early. (Along time: EF103.)""",
        why="""\
The chain rule multiplies one factor per layer. If the typical factor is below 1 the
product falls exponentially with depth. A sigmoid's slope is at most 1/4; PyTorch's
default weights shrink a ReLU net by √6 per layer.""",
        mathematics="""\
With δ_l = ∂L/∂z_l at pre-activation z_l, width n and weights of variance σ_w²/n,

    E‖δ_l‖² = χ₁ · E‖δ_(l+1)‖²,   χ₁ = σ_w² E[φ'(√q z)²],   z ~ N(0,1)

(Poole 2016; Schoenholz 2017). χ₁ < 1 vanishes with depth scale −1/ln χ₁. Sigmoid:
φ' ≤ 1/4, so χ₁ ≤ σ_w²/16; PyTorch's σ_w² = 1/3 gives .84 decades per layer. ReLU:
χ₁ = σ_w²/2. One network shows e^(−β/2) of the mean, give or take √β in log ‖δ‖²,
with β = Σ 5/n (Hanin 2018).""",
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
and what the weights lose against what the activation needs; what is lost where a
normalisation follows an addition is put on post-LN. A layer that is zero by design
(a zero-initialised head) is a note.""",
        remedies="""\
Swap sigmoid or tanh for ReLU, GELU or SiLU; initialise for the activation (He,
Glorot); normalise before each activation; add skip connections. Adam and its relatives hide a small
gradient down to about their ε, but not its noise.""",
        references=(
            "Hochreiter, Untersuchungen zu dynamischen neuronalen Netzen, diploma thesis, TU Munich 1991.",
            "Bengio, Simard, Frasconi, Learning long-term dependencies with gradient descent is difficult, "
            "IEEE TNN 1994.",
            "Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, "
            "AISTATS 2010.",
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
        graph = op_graph(flow)
        graph.refuse_non_finite()
        found = ways(graph)
        yield from zero_gradient.findings(self.code, flow, graph, found)
        worst = min(
            (way for way in found if math.isfinite(way.excess)), key=lambda way: way.certain, default=None
        )
        if worst is not None and worst.certain + worst.half_width + _made_up(graph, worst) < -LOST.value:
            yield _by_depth(flow, graph, in_steps(graph, worst))


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
