"""EF105: in the middle of the network the gradient is far from what it is at both ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

from evenflow.diagnose.attribution import BY_SUM, DEEP, DEPTH_AT_LEAST, HALVES, causes_of
from evenflow.diagnose.finding import CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import factor, place, site
from evenflow.diagnose.way import BLOCKS, Kind, Way, in_steps, ways
from evenflow.flow import Flow, Row

APART = Threshold(
    3.0,
    "decades by which a layer's gradient lies below, or above, those of the first and the last layer",
    "as in EF101 and EF102, which compare the ends alone",
)

_BLAME = {
    -1: {
        Kind.SQUASHING: CauseName.SATURATING_ACTIVATION,
        Kind.RECTIFIER: CauseName.DEAD_RELU,
        Kind.LINEAR: CauseName.INIT_TOO_SMALL,
        Kind.FACTOR: CauseName.INIT_TOO_SMALL,
        Kind.POST_NORM: CauseName.POST_LN_DEPTH,
    },
    1: {
        Kind.LINEAR: CauseName.INIT_TOO_LARGE,
        Kind.FACTOR: CauseName.INIT_TOO_LARGE,
        Kind.NORM: CauseName.NORMALIZATION_EXPLOSION,
        Kind.BLOCK: CauseName.RESIDUAL_GROWTH,
        Kind.POST_NORM: CauseName.RESIDUAL_GROWTH,
    },
}


@dataclass(frozen=True, slots=True)
class _Extreme:
    """A layer between the ends: its level against both, and the way from it to the last layer."""

    row: Row
    apart: float
    way: Way

    @property
    def sign(self) -> int:
        return 1 if self.apart > 0.0 else -1


@final
class UnevenGradient(Rule):
    """Looks for a layer between the ends that starves, or is flooded."""

    code = "EF105"
    name = "uneven_gradient"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "Layers in the middle get a gradient that is orders of magnitude off that of both ends."
    causes = (
        CauseName.INIT_TOO_SMALL,
        CauseName.INIT_TOO_LARGE,
        CauseName.SATURATING_ACTIVATION,
        CauseName.DEAD_RELU,
        CauseName.NORMALIZATION_EXPLOSION,
        CauseName.RESIDUAL_GROWTH,
        CauseName.POST_LN_DEPTH,
        CauseName.DEPTH_WITHOUT_SKIP,
        CauseName.UNKNOWN,
    )
    thresholds = (APART, HALVES, DEPTH_AT_LEAST, DEEP, BY_SUM)
    page = Page(
        what="""\
The first and the last layers get gradients of the same size, so a look at both ends finds
nothing wrong, yet layers between them get thousands of times less (or more) and learn at
another pace than all the rest.""",
        why="""\
One part shrinks the gradient and another one, below it, makes up for that: weights of a
module that were initialised by another recipe, a bottleneck that saturates, a layer scaled
down whose scale a later layer undoes.""",
        mathematics="""\
log10 ‖δ_l‖ − log10 ‖δ_L‖ is a sum over the steps above layer l. EF101 and EF102 read its
value at l = 1; here it is the smallest, or largest, of all partial sums, with the
corrections for normalisations and averages that EF101 explains.""",
        detection="""\
Along each way the level of every layer is compared with the nearer of the two ends. Three
decades below or above both is an alarm; as in EF101, the milder of two ways of counting
sizes decides, so that a scale that a normalisation takes away is no fault. The causes are
those of the steps between the layer and the last one.""",
        remedies="""\
Initialise all layers by one recipe that suits their activations; normalise before each
activation; look at the op that is named.""",
        references=(
            "He, Zhang, Ren, Sun, Delving deep into rectifiers, ICCV 2015.",
            "Zhang et al., AutoTrainer: an automatic DNN training problem detection and repair system, "
            "ICSE 2021 (the ratio of three decades).",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        graph.refuse_non_finite()
        found = [
            extreme
            for way in ways(graph)
            if math.isfinite(way.excess) and (extreme := _extreme(in_steps(graph, way))) is not None
        ]
        if found:
            yield _finding(max(found, key=lambda extreme: abs(extreme.apart)))


def _extreme(way: Way) -> _Extreme | None:
    """The layer furthest from both ends, if it is far enough."""
    end = _certain(_log10_norm(way.first) - _log10_norm(way.last), way.excess)
    best: _Extreme | None = None
    excess = 0.0
    for i in reversed(range(1, len(way.steps))):
        step = way.steps[i]
        excess += 0.0 if step.recurrent else step.log10_gain
        row = way.steps[i - 1].output
        if way.steps[i - 1].kind not in (Kind.LINEAR, *BLOCKS):
            continue
        plain = _log10_norm(row) - _log10_norm(way.last)
        level = _certain(plain, excess)
        apart = max(0.0, level - max(0.0, end)) or min(0.0, level - min(0.0, end))
        if abs(apart) > APART.value + way.half_width and (best is None or abs(apart) > abs(best.apart)):
            part = replace(way, first=row, steps=way.steps[i:], log10_ratio=plain, plain=plain, excess=excess)
            best = _Extreme(row, apart, part)
    return best


def _certain(plain: float, excess: float) -> float:
    """What remains whichever way sizes are counted, see :attr:`Way.certain`."""
    return min(plain, excess, key=abs) if plain * excess > 0.0 else 0.0


def _log10_norm(row: Row) -> float:
    return row.stats.log10_norm if row.stats is not None else -math.inf


def _finding(extreme: _Extreme) -> Finding:
    way, row, sign = extreme.way, extreme.row, extreme.sign
    causes = causes_of(way, _BLAME[sign], sign=sign)
    side = "larger" if sign > 0 else "smaller"
    return Finding(
        code=UnevenGradient.code,
        symptom=Symptom.EXPLODING_GRADIENT if sign > 0 else Symptom.VANISHING_GRADIENT,
        severity=Severity.WARNING,
        site=site(row),
        message=f"The gradient at {place(row)} is {factor(extreme.apart)} times {side} than at both ends of "
        "the network.",
        source=row.source,
        causes=causes,
        evidence=(
            Evidence(
                f"log10 of the gradient's norm at {place(row)} over that at {place(way.last)}: "
                f"{way.plain:.2f}; {abs(extreme.apart):.2f} decades from the nearer end "
                f"(alarm above {APART.value:.0f}).",
                extreme.apart,
                sign * APART.value,
            ),
        ),
        remedies=remedies(causes),
    )
