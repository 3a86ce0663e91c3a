"""EF401: many layers in a row without a skip connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import place, site
from evenflow.diagnose.way import Way, in_steps, ways
from evenflow.flow import Flow

PLAIN = Threshold(
    20.0,
    "layers in a row without a skip connection, above which it is worth a note",
    "He 2016, figure 1: a plain net of 20 layers trains, one of 56 trains worse; figure 4: 34 worse than 18",
)
CHANCE = Threshold(
    2.0,
    "standard deviations of what finite width alone causes, for the evidence",
    "Hanin 2018; two standard deviations hold 95 % of draws",
)


@final
class DepthWithoutSkip(Rule):
    """Counts the layers that the gradient cannot avoid."""

    code = "EF401"
    name = "depth_without_skip"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "So many layers in a row without a skip connection that training them is delicate."
    causes = (CauseName.DEPTH_WITHOUT_SKIP,)
    thresholds = (PLAIN, CHANCE)
    page = Page(
        what="""\
A deep plain network trains worse than a shallower one, also on its own training data, or
depends on the seed: some runs learn, others do not.""",
        why="""\
Every layer multiplies the gradient by some factor, and there is no other way around. Any
mismatch is raised to the power of the depth, and chance adds up too: the product of random
factors spreads by orders of magnitude.""",
        mathematics="""\
log ‖δ_1‖² of one draw is normal around its mean less β/2 with variance β = Σ 5/n_l over
ReLU layers of width n_l (Hanin 2018), so narrow and deep is the worst. With a skip the
factor of a block is 1 + k, and L blocks of k = 1/L stay below e.""",
        detection="""\
The layers that the gradient cannot avoid are counted. More than twenty without any block that
has another way around them are a *note*, never more: tanh nets of 50 layers with Glorot's
weights are healthy. Whether the gradient does vanish or explode is said by EF101 and
EF102, which then name depth among the causes.""",
        remedies="""\
Skip connections around every one or two layers, x + f(x); fewer and wider layers;
orthogonal weights at the edge of chaos.""",
        references=(
            "He, Zhang, Ren, Sun, Deep residual learning for image recognition, CVPR 2016.",
            "Srivastava, Greff, Schmidhuber, Training very deep networks, NeurIPS 2015.",
            "Hanin, Which neural net architectures give rise to exploding and vanishing gradients?, "
            "NeurIPS 2018.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        plain = [way for one in ways(graph) if not (way := in_steps(graph, one)).has_skips]
        deepest = max(plain, key=lambda way: way.layers, default=None)
        if deepest is not None and deepest.layers + 1 > PLAIN.value:
            yield _finding(deepest)


def _finding(way: Way) -> Finding:
    low, high = way.usual(CHANCE.value)
    cause = Cause(
        CauseName.DEPTH_WITHOUT_SKIP,
        1.0,
        f"With weights that suit it, chance alone moves the gradient by {low:.1f} to {high:+.1f} decades.",
    )
    return Finding(
        code=DepthWithoutSkip.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.NOTE,
        site=site(way.first),
        message=f"{way.layers + 1} layers in a row, from {place(way.first)} to {place(way.last)}, "
        "have no skip connection.",
        source=way.first.source,
        causes=(cause,),
        evidence=(Evidence(cause.evidence, way.layers + 1.0, PLAIN.value),),
    )
