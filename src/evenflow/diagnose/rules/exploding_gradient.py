"""EF102: the gradient at the first layer is many times that at the last one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose.attribution import BY_SUM, DEEP, DEPTH_AT_LEAST, HALVES, causes_of, measured
from evenflow.diagnose.finding import CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, place, site
from evenflow.diagnose.way import Kind, Way, in_steps, ways
from evenflow.flow import Flow

GROWN = Threshold(
    3.0,
    "decades gained between the last layer and the first",
    "the mirror image of EF101's; above torchmortem's and AutoTrainer's ratios (100 and 70), "
    "which healthy deep tanh nets (gain 5/3, 50 layers: 1.9 decades) and 20-layer BatchNorm nets (1.6) "
    "come near",
)
CHANCE = Threshold(
    2.0,
    "standard deviations of what finite width alone causes, given for comparison; it never reaches "
    "the threshold upwards",
    "Hanin 2018: log ‖g‖² ~ N(−β/2, β) with β = Σ 5/width; at two deviations the upper bound is at most "
    ".43 decades, at β = 4",
)
SQUARE_OVERFLOWS = Threshold(
    2.0**64,
    "largest gradient entry whose square float32 can hold",
    "IEEE 754, binary32 ends at 2^128; norms for clipping and Adam's second moment are sums of squares",
)

_BLAME = {
    Kind.LINEAR: CauseName.INIT_TOO_LARGE,
    Kind.FACTOR: CauseName.INIT_TOO_LARGE,
    Kind.NORM: CauseName.NORMALIZATION_EXPLOSION,
    Kind.POST_NORM: CauseName.RESIDUAL_GROWTH,
    Kind.BLOCK: CauseName.RESIDUAL_GROWTH,
}


@final
class ExplodingGradient(Rule):
    """Compares the gradient at the first layer with that at the last."""

    code = "EF102"
    name = "exploding_gradient"
    symptom = Symptom.EXPLODING_GRADIENT
    summary = "The gradient grows by orders of magnitude on its way back to the first layers."
    causes = (
        CauseName.INIT_TOO_LARGE,
        CauseName.NORMALIZATION_EXPLOSION,
        CauseName.RESIDUAL_GROWTH,
        CauseName.DEPTH_WITHOUT_SKIP,
        CauseName.UNKNOWN,
    )
    thresholds = (GROWN, CHANCE, HALVES, DEPTH_AT_LEAST, DEEP, SQUARE_OVERFLOWS, BY_SUM)
    page = Page(
        what="""\
The first layers receive a gradient that is thousands of times larger than the last
ones. A learning rate that suits one end is far off at the other; the loss spikes,
diverges or turns NaN.""",
        why="""\
The chain rule multiplies one factor per layer, and the typical factor is above 1:
weights too large for their activation, residual branches that add up unscaled, or
BatchNorm in a plain stack, which amplifies by itself whatever the weights. (Along
time: EF104.)""",
        mathematics="""\
E‖δ_l‖² = χ₁ · E‖δ_(l+1)‖² with χ₁ = σ_w² E[φ'²] > 1 (Poole 2016; Schoenholz 2017).

BatchNorm before ReLU: the next layer's variance is Var φ, not E φ², so χ₁ =
E[φ'²]/Var φ = π/(π−1) = 1.467, or .083 decades per layer (Yang 2019). A residual
branch of gain k makes 1 + k per block.""",
        detection="""\
As in EF101, with the signs turned: the excess of the first layer's gradient over the
last one's, where scales that a normalisation takes away and averages do not count.
Large gradients that are even over the layers raise no alarm, whatever their size: one
learning rate suits them. It is an *error* where squares overflow, because then
clipping and Adam fail too.""",
        remedies="""\
Initialise for the activation; scale residual branches by 1/√(2·blocks) or start them
at zero; add skips around normalised layers; clip the gradient by its norm.""",
        references=(
            "Bengio, Simard, Frasconi, Learning long-term dependencies with gradient descent is difficult, "
            "IEEE TNN 1994.",
            "Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, Deep information propagation, ICLR 2017.",
            "Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, A mean field theory of batch normalization, "
            "ICLR 2019.",
            "Hanin, Which neural net architectures give rise to exploding and vanishing gradients?, "
            "NeurIPS 2018.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        graph.refuse_non_finite()
        found = ways(graph)
        worst = max(
            (way for way in found if math.isfinite(way.excess)), key=lambda way: way.certain, default=None
        )
        if worst is not None and worst.certain - worst.half_width > GROWN.value:
            yield _by_depth(in_steps(graph, worst))


def _by_depth(way: Way) -> Finding:
    usual = way.usual(CHANCE.value)
    causes = causes_of(way, _BLAME, sign=1)
    reason = _overflowing(way)
    return Finding(
        code=ExplodingGradient.code,
        symptom=Symptom.EXPLODING_GRADIENT,
        severity=Severity.WARNING if reason is None else Severity.ERROR,
        site=site(way.first),
        message=f"The gradient grows by a factor of {factor(way.excess)} from {place(way.last)} back to "
        f"{place(way.first)}, over {count(way.layers, 'layer')}.",
        source=way.first.source,
        causes=causes,
        evidence=(*measured(way, GROWN.value, usual), *filter(None, [reason])),
        remedies=remedies(causes),
    )


def _overflowing(way: Way) -> Evidence | None:
    """Why clipping and adaptive optimizers fail too; None if they do not."""
    largest = way.first.stats.abs_max if way.first.stats is not None else None
    if largest is None or largest < SQUARE_OVERFLOWS.value:
        return None
    return Evidence(
        f"The largest entry of the gradient at {place(way.first)} is {largest:.1e}; its square overflows "
        "float32, so clipping by norm and Adam fail too.",
        largest,
        SQUARE_OVERFLOWS.value,
    )
