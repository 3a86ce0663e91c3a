"""EF402: BatchNorm in a plain stack, which amplifies gradients by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, place, site
from evenflow.diagnose.way import Kind, Way, in_steps, ways
from evenflow.flow import Flow, Row

DECADE = Threshold(
    1.0,
    "decades that BatchNorm and rectifiers add by themselves, from which it is worth a note",
    "a judgement: the first layer then gets ten times the gradient of the last one",
)
PER_BLOCK = Threshold(
    0.5 * math.log10(math.pi / (math.pi - 1.0)),
    "decades that BatchNorm and a rectifier add per block",
    "½ log10 π/(π−1): the mean square of a rectifier's output over its variance (Yang 2019)",
)


@final
class NormalizationExplosion(Rule):
    """Counts BatchNorm followed by a rectifier along plain ways."""

    code = "EF402"
    name = "normalization_explosion"
    symptom = Symptom.EXPLODING_GRADIENT
    summary = "BatchNorm in a deep plain stack amplifies the gradient by itself, whatever the weights."
    causes = (CauseName.NORMALIZATION_EXPLOSION,)
    thresholds = (DECADE, PER_BLOCK)
    page = Page(
        what="""\
In a deep plain stack of linear layer, BatchNorm and ReLU the first layers get much larger
gradients than the last ones, and no initialisation changes that. Learning rates that suit
the last layers break the first.""",
        why="""\
BatchNorm divides by the standard deviation, and a rectifier's output has a mean that its
mean square includes but its variance does not. So more is divided away than the rectifier
took, each time.""",
        mathematics="""\
Behind BatchNorm z ~ N(0, 1); the next layer's variance comes from Var φ(z), so per block
E‖δ‖² grows by E φ'² / Var φ = ½ / (½ − 1/2π) = π/(π−1) = 1.467 for ReLU: a factor 1.211 on
‖δ‖, .083 decades, and 4.1 decades over 50 layers.""",
        detection="""\
BatchNorm in training mode, followed by a rectifier, is counted along ways without skips. One
decade in all (12 blocks) is a *note*; EF102 says whether the gradient does explode. In
evaluation mode BatchNorm is a fixed scale, and with skips the growth is not exponential.""",
        remedies="""\
Skip connections around the normalised layers, as ResNets have them; LayerNorm or RMSNorm
with He initialisation instead.""",
        references=(
            "Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, A mean field theory of batch normalization, "
            "ICLR 2019.",
            "De, Smith, Batch normalization biases residual blocks towards the identity function in deep "
            "networks, NeurIPS 2020.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        if flow.metadata.get("training") is False:
            return
        graph = op_graph(flow)
        found = [
            (norms, way) for one in ways(graph) if (norms := _norms(way := in_steps(graph, one))) is not None
        ]
        norms, deepest = max(found, key=lambda one: len(one[0]), default=([], None))
        if deepest is not None and len(norms) * PER_BLOCK.value > DECADE.value:
            yield _finding(deepest, norms)


def _norms(way: Way) -> list[Row] | None:
    """BatchNorms with a rectifier behind them, of a way without skips."""
    if way.has_skips:
        return None
    return [
        norm.output
        for norm, after in pairwise(way.steps)
        if norm.kind is Kind.NORM and after.kind is Kind.RECTIFIER and "batch_norm" in norm.output.site.op
    ]


def _finding(way: Way, norms: list[Row]) -> Finding:
    grown = len(norms) * PER_BLOCK.value
    cause = Cause(
        CauseName.NORMALIZATION_EXPLOSION,
        1.0,
        f"{count(len(norms), 'BatchNorm')} with a rectifier behind each add {grown:.1f} decades; measured "
        f"are {way.plain:+.1f} over {count(way.layers, 'layer')}.",
    )
    return Finding(
        code=NormalizationExplosion.code,
        symptom=Symptom.EXPLODING_GRADIENT,
        severity=Severity.NOTE,
        site=site(norms[0]),
        message=f"BatchNorm in a plain stack makes the gradient {factor(grown)} times as large at "
        f"{place(way.first)} as at {place(way.last)}, by itself.",
        source=norms[0].source,
        causes=(cause,),
        evidence=(Evidence(cause.evidence, grown, DECADE.value),),
    )
